import type { Tensor } from '@heed/core';

const axes = ['Batch', 'Token', 'Head'] as const;

/** `<name>Batch`, `<name>Token` and `<name>Head` of each name. */
export type Strides<N extends string, T> = Readonly<Record<`${N}${(typeof axes)[number]}`, T>>;

/** Where rows of operands [batch, tokens, heads, ..] lie, as run-time values of a kernel. */
export interface RowStrides<N extends string> {
  readonly uniforms: Strides<N, 'u32'>;
  /** Strides in elements; zeros for an operand that is absent. */
  values(operands: Readonly<Record<N, Tensor | undefined>>): Strides<N, number>;
}

/**
 * Strides of the operands named. Where their values join others they come last: an object that grows behind a spread costs ten times as much.
 */
export function rowStrides<const N extends string>(...names: readonly N[]): RowStrides<N> {
  const keys = names.map((name) => axes.map((axis) => `${name}${axis}` as const));
  const all = <T>(value: T): Strides<N, T> => Object.fromEntries(keys.flat().map((key) => [key, value])) as Strides<N, T>;
  const zeros = all(0);
  return {
    uniforms: all('u32'),
    values(operands) {
      const made: Record<string, number> = { ...zeros };
      for (let i = 0; i < names.length; i++) {
        const strides = operands[names[i] as N]?.strides;
        const own = keys[i];
        if (strides && own) for (let axis = 0; axis < own.length; axis++) made[own[axis] as string] = strides[axis] ?? 0;
      }
      return made as Strides<N, number>;
    },
  };
}

/** Strides of gates [batch, tokens, heads] or [batch, tokens, heads, channels]. */
export const gateStrides: RowStrides<'g'> = /* @__PURE__ */ rowStrides('g');
