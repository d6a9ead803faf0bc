import type { Tensor } from '../tensor/tensor.js';
import { HeedError } from '../errors.js';
import { capture, exprFunction, type Expr, type ExprFunction, typedExpr, uniform, variable } from '../kernel/expr/index.js';
import { substitute } from '../kernel/expr/index.js';

/** Where a score stands: batch entry, query head, query position (row + queryOffset), key position. */
export interface ScorePosition {
  b: Expr<'i32'>;
  h: Expr<'i32'>;
  q: Expr<'i32'>;
  kv: Expr<'i32'>;
}

/** Run-time values that a score function or mask reads. They are no part of the pipeline's key. */
export interface CapturedValues {
  /** Tensors by capture name, read by flat row-major index; f32, f16, i32 or u32. */
  captures?: Readonly<Record<string, Tensor>>;
  /** Numbers by uniform name. */
  uniforms?: Readonly<Record<string, number>>;
}

/** A function of a score and its place, with what it captures. Made by `scoreMod`. */
export interface ScoreMod extends CapturedValues {
  /** Inputs: score f32, then b, h, q, kv as i32. */
  readonly fn: ExprFunction;
}

/**
 * A score function: what becomes of each scaled score before masking, as an expression, so that its derivative comes with it.
 *
 * ```ts
 * const table = capture('table', 'f32', { differentiable: true });
 * scoreMod((s, { h, q, kv }) => s.add(table.at(h.mul(127).add(kv.sub(q)).add(63))), { captures: { table: relative } })
 * ```
 * Gradients flow into captured tensors whose captures are declared differentiable.
 * @throws HeedError INVALID_ARGUMENT when a captured tensor or uniform has no value
 */
export function scoreMod(body: (score: Expr<'f32'>, at: ScorePosition) => Expr<'f32'>, values: CapturedValues = {}): ScoreMod {
  const fn = typedExpr(['f32', 'i32', 'i32', 'i32', 'i32'], (s, b, h, q, kv) => body(s, { b, h, q, kv }));
  checkValues('scoreMod', fn, values);
  return { fn, ...values };
}

/** @throws HeedError INVALID_ARGUMENT when a name of the expression has no value */
function checkValues(who: string, fn: ExprFunction<'f32' | 'bool'>, values: CapturedValues): void {
  for (const { name } of fn.captures)
    if (!values.captures?.[name]) throw new HeedError('INVALID_ARGUMENT', `${who}: capture "${name}" has no tensor; give it in captures`);
  for (const { name } of fn.uniforms)
    if (values.uniforms?.[name] === undefined)
      throw new HeedError('INVALID_ARGUMENT', `${who}: uniform "${name}" has no value; give it in uniforms`);
}

/**
 * Slopes of ALiBi (Press, Smith, Lewis 2022): 2^(-8 (h + 1) / heads) for a power of two; else those of the largest power of two
 * P below, followed by every second one of 2P.
 */
export function alibiSlopes(heads: number): Float32Array<ArrayBuffer> {
  const power = 2 ** Math.floor(Math.log2(heads));
  return Float32Array.from(
    { length: heads },
    (_, h) => 2 ** (h < power ? (-8 * (h + 1)) / power : (-8 * (2 * (h - power) + 1)) / (2 * power)),
  );
}

/** What happens to a scaled score, composed: softcap, then the score function, then ALiBi. */
export interface ComposedScore extends CapturedValues {
  readonly fn: ExprFunction;
  readonly captures: Readonly<Record<string, Tensor>>;
  readonly uniforms: Readonly<Record<string, number>>;
}

const composed = new WeakMap<ExprFunction, Map<string, ExprFunction>>();
const identity: ExprFunction = typedExpr(['f32', 'i32', 'i32', 'i32', 'i32'], (s) => s);

/** @returns undefined when scores stay as they are */
export function composeScore(options: {
  scoreMod?: ScoreMod | undefined;
  softcap?: number | undefined;
  alibi?: Tensor | undefined;
}): ComposedScore | undefined {
  const { scoreMod: mod, softcap, alibi } = options;
  if (!mod && softcap === undefined && !alibi) return undefined;
  const base = mod?.fn ?? identity;
  const key = `${softcap !== undefined} ${alibi !== undefined}`;
  let made = composed.get(base);
  if (!made) composed.set(base, (made = new Map()));
  let fn = made.get(key);
  if (!fn) made.set(key, (fn = compose(base, softcap !== undefined, alibi !== undefined)));
  return {
    fn,
    captures: { ...mod?.captures, ...(alibi && { heedSlopes: alibi }) },
    uniforms: { ...mod?.uniforms, ...(softcap !== undefined && { heedSoftcap: softcap }) },
  };
}

function compose(mod: ExprFunction, softcap: boolean, alibi: boolean): ExprFunction {
  const inputs = mod.inputs;
  const [s, , h, q, kv] = inputs.map(({ name, type }) => variable(name, type)) as [
    Expr<'f32'>,
    Expr<'i32'>,
    Expr<'i32'>,
    Expr<'i32'>,
    Expr<'i32'>,
  ];
  let value = s;
  if (softcap) {
    const cap = uniform('heedSoftcap', 'f32');
    value = cap.mul(value.div(cap).tanh());
  }
  value = substitute(mod.body, { variables: { [inputs[0]!.name]: value } });
  if (alibi) value = value.add(capture('heedSlopes', 'f32', { differentiable: true }).at(h).mul(kv.sub(q).f32()));
  return exprFunction(inputs, value);
}
