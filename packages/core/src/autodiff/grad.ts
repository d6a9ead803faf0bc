import { isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import { full, zeros } from '../tensor/create.js';
import { scope, tensorsIn } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import { accumulate } from './accumulate.js';
import { apply, currentTape, Tape, withoutTape, withTape } from './tape.js';

/** Tensors by name, nested as the model likes it. */
export type Params = Tensor | readonly Params[] | { readonly [name: string]: Params };

/** The shape of `P` with a gradient at each tensor. */
export type Gradients<P> = [Params] extends [P]
  ? Params
  : P extends Tensor
    ? Tensor
    : P extends object
      ? { [K in keyof P]: Gradients<P[K]> }
      : never;

export interface ValueAndGrad<P, R> {
  /** What the loss returned. */
  value: R;
  /** One gradient a float parameter, zeros where the loss does not depend on it. */
  grads: Gradients<P>;
}

export interface GradOptions {
  /** Factor on the loss before the backward pass (loss scaling for f16). Default 1; a tensor is read on the device. */
  scale?: number | Tensor;
}

/**
 * Makes a function that gives a loss and its gradients with respect to its first argument.
 *
 * The loss returns a scalar tensor ([] or [1]), or an object whose `loss` is one. The tape lives inside the call: nothing
 * unused survives it, and integer tensors among the parameters get no gradient.
 *
 * @throws HeedError SHAPE_MISMATCH when the loss is no scalar, UNSUPPORTED when an op on the way has no gradient
 */
export function valueAndGrad<P extends Params, A extends readonly unknown[], R extends Tensor | { loss: Tensor }>(
  loss: (params: P, ...args: A) => R,
  options: GradOptions = {},
): <Q extends P>(params: Q, ...args: A) => ValueAndGrad<Q, R> {
  return (params, ...args) => differentiate(params, () => loss(params, ...args), options) as never;
}

/**
 * As `valueAndGrad`, but the function that it makes returns the gradients alone.
 * @throws HeedError SHAPE_MISMATCH when the loss is no scalar, UNSUPPORTED when an op on the way has no gradient
 */
export function grad<P extends Params, A extends readonly unknown[]>(
  loss: (params: P, ...args: A) => Tensor,
  options: GradOptions = {},
): <Q extends P>(params: Q, ...args: A) => Gradients<Q> {
  return (params, ...args) => {
    const { value, grads } = differentiate(params, () => loss(params, ...args), options);
    for (const t of tensorsIn(value)) t.dispose();
    return grads as never;
  };
}

function differentiate(params: unknown, loss: () => Tensor | { loss: Tensor }, options: GradOptions): { value: unknown; grads: unknown } {
  const leaves = [...tensorsIn(params)].filter((t) => isFloat(t.dtype));
  const tape = new Tape();
  for (const leaf of leaves) tape.track(leaf);
  // a scope of its own: what was made is freed when a later part throws
  return scope(() => {
    try {
      const value = withTape(tape, () => scope(loss));
      const root = value instanceof Tensor ? value : value.loss;
      if (!(root instanceof Tensor) || root.size !== 1) {
        throw new HeedError(
          'SHAPE_MISMATCH',
          `valueAndGrad: the loss returned ${root instanceof Tensor ? root.describe() : typeof root}; it must return one number, for instance mean(x)`,
        );
      }
      const { scale = 1 } = options;
      const seed =
        typeof scale === 'number'
          ? full(root.device, root.shape, scale, { dtype: root.dtype })
          : scale.view({ shape: root.shape, strides: root.shape.map(() => 1) });
      const wanted = new Set(leaves.map((t) => t.id));
      const found = withoutTape(() => tape.backward(new Map([[root.id, seed]]), wanted, accumulate));
      const byId = new Map<number, Tensor>();
      for (const leaf of leaves) {
        const gradient = found.get(leaf.id);
        byId.set(leaf.id, gradient ?? zeros(leaf.device, leaf.shape, { dtype: leaf.dtype }));
      }
      return { value, grads: mapParams(params, (t) => byId.get(t.id)) };
    } finally {
      tape.dispose();
    }
  });
}

function mapParams(params: unknown, f: (t: Tensor) => Tensor | undefined): unknown {
  if (params instanceof Tensor) return f(params);
  if (Array.isArray(params)) return params.map((p: unknown) => mapParams(p, f));
  return Object.fromEntries(Object.entries(params as Record<string, unknown>).map(([name, p]) => [name, mapParams(p, f)]));
}

/** `x` without a way back: gradients stop here. */
export function stopGradient(x: Tensor): Tensor {
  return x.alias();
}

/**
 * Makes `f` keep only its inputs for the backward pass and run again there: less memory for about a third more time.
 * `f` must depend on its tensor arguments alone (parameters are arguments too) and be repeatable (seeded randomness is).
 */
export function checkpoint<A extends readonly Tensor[], R extends Tensor | readonly Tensor[]>(f: (...inputs: A) => R): (...inputs: A) => R {
  return (...inputs) => {
    if (!currentTape()) return f(...inputs);
    return apply<R>({
      name: 'checkpoint',
      inputs,
      forward: () => f(...inputs),
      saves: () => inputs,
      backward: (cotangents, { saved, needs }) => {
        const tape = new Tape();
        // fresh handles: the saved ones are shared with the outer tape
        const again = saved.map((t) => t.alias());
        again.forEach((t, i) => needs[i] && tape.track(t));
        try {
          const result = withTape(tape, () => scope(() => f(...(again as unknown as A))));
          const outputs: readonly Tensor[] = result instanceof Tensor ? [result] : (result as readonly Tensor[]);
          const seeds = new Map<number, Tensor>();
          outputs.forEach((out, i) => {
            const cotangent = cotangents[i];
            if (cotangent) seeds.set(out.id, cotangent);
          });
          const wanted = new Set(again.filter((_, i) => needs[i]).map((t) => t.id));
          const found = tape.backward(seeds, wanted, accumulate);
          return again.map((t) => found.get(t.id) ?? null);
        } finally {
          tape.dispose();
        }
      },
    });
  };
}

/**
 * Vector-Jacobian product: outputs of `f` and the gradients of its inputs for given cotangents. For tests, and for
 * gradients of functions with several outputs.
 * @param cotangents one an output, null for zero
 */
export function vjp(
  f: () => Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  cotangents: readonly (Tensor | null)[],
): { outputs: Tensor[]; grads: Tensor[] } {
  const tape = new Tape();
  for (const t of inputs) tape.track(t);
  try {
    const result = withTape(tape, () => scope(f));
    const outputs = result instanceof Tensor ? [result] : [...result];
    const seeds = new Map<number, Tensor>();
    outputs.forEach((out, i) => {
      const cotangent = cotangents[i];
      if (cotangent) seeds.set(out.id, cotangent);
    });
    const found = tape.backward(seeds, new Set(inputs.map((t) => t.id)), accumulate);
    const grads = inputs.map((t) => {
      return found.get(t.id) ?? zeros(t.device, t.shape, { dtype: t.dtype });
    });
    return { outputs, grads };
  } finally {
    tape.dispose();
  }
}
