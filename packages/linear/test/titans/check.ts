import { type Device, RandomStream, scope, tensor, type Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { type F64Array, expectErrorRatio, f64 } from '@heed/core/testing';
import { type TitansForm, type TitansOptions, titansWithState } from '../../src/titans/index.js';
import { referenceTitans, type TitansReferenceOptions } from '../../src/titans/reference.js';

/** One problem of the tests. */
export interface Problem extends Omit<TitansForm, 'transition'> {
  batch?: number;
  tokens: number;
  heads?: number;
  headDim: number;
  /** Widths between the layers of the memory; none: a linear one. */
  hidden?: readonly number[];
  residual?: boolean;
  orders?: number;
  /** Gate of the moves of the gradient point. */
  gate?: number;
  seed?: number;
}

/** Operands of a problem in float64, rounded to f32. */
export interface Operands {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  learningRate: F64Array;
  momentum: F64Array[];
  forget: F64Array;
  weights: F64Array[];
  gamma: F64Array | undefined;
}

export function operandsOf(problem: Problem): Operands {
  const { batch = 1, tokens, heads = 2, headDim, hidden = [], residual = true, orders = 1, chunkSize, seed = 1 } = problem;
  const made = (name: string, shape: readonly number[], turn: (x: number) => number = (x) => x): F64Array => {
    const random = new RandomStream(seed, name);
    return f64(
      shape,
      random.normal(shape.reduce((a, b) => a * b, 1)).map((x) => Math.fround(turn(x))),
    );
  };
  const share = (x: number): number => 1 / (1 + Math.exp(-x));
  const chunks = Math.floor(tokens / chunkSize);
  const widths = [headDim, ...hidden, headDim];
  return {
    q: made('q', [batch, tokens, heads, headDim]),
    k: made('k', [batch, tokens, heads, headDim], (x) => 0.5 * x),
    v: made('v', [batch, tokens, heads, headDim]),
    learningRate: made('rate', [batch, tokens, heads], (x) => 0.1 * share(x)),
    momentum: Array.from({ length: orders }, (_, o) => made(`momentum${o}`, [batch, chunks, heads], share)),
    forget: made('forget', [batch, chunks, heads], (x) => 0.2 * share(x)),
    weights: widths.slice(1).map((n, i) => made(`w${i}`, [heads, widths[i] as number, n], (x) => x / Math.sqrt(widths[i] as number))),
    gamma: residual ? made('gamma', [heads, headDim], (x) => 0.1 * x) : undefined,
  };
}

/** The operands on a device, with the options that hold them; in the scope of the caller. */
export function deviceOperands(
  device: Device,
  operands: Operands,
  { gate, ...form }: TitansForm & { gate?: number },
): { q: Tensor; k: Tensor; v: Tensor; options: TitansOptions } {
  const on = (x: F64Array): Tensor => tensor(device, Float32Array.from(x.values), x.shape);
  const { gamma, momentum } = operands;
  return {
    q: on(operands.q),
    k: on(operands.k),
    v: on(operands.v),
    options: {
      ...form,
      ...(gate !== undefined && { transition: tensor(device, Float32Array.of(gate)) }),
      memory: { weights: operands.weights.map(on), ...(gamma && { gamma: on(gamma) }) },
      learningRate: on(operands.learningRate),
      forget: on(operands.forget),
      ...(momentum.length > 0 && { momentum: momentum.map(on) }),
    },
  };
}

/** The settings of a problem without its shape. */
export function formOf(problem: Problem): TitansForm & { gate?: number } {
  const { batch: _b, tokens: _t, heads: _h, headDim: _d, hidden: _w, residual: _r, orders: _o, seed: _s, ...form } = problem;
  return form;
}

export function referenceOptions(operands: Operands, problem: Problem): TitansReferenceOptions {
  const { weights, gamma, learningRate, momentum, forget } = operands;
  const { chunkSize, gradientPeriod, activation, lossReduction, lnEpsilon, gradientClamp, orthogonalize, gate } = problem;
  return {
    weights,
    gamma,
    learningRate,
    momentum,
    forget,
    chunkSize,
    ...(gradientPeriod !== undefined && { gradientPeriod }),
    ...(activation && { activation }),
    ...(lossReduction && { lossReduction }),
    ...(lnEpsilon && { lnEpsilon }),
    ...(gradientClamp !== undefined && { gradientClamp }),
    ...(orthogonalize && { orthogonalize }),
    ...(gate !== undefined && { transition: gate }),
  };
}

/** Runs a problem forward and holds outputs, memory and momentum against float64. */
export async function checkForward(device: Device, problem: Problem, bound = 2e-5): Promise<void> {
  const operands = operandsOf(problem);
  const expected = referenceTitans(operands.q, operands.k, operands.v, referenceOptions(operands, problem));
  const { out, state } = scope(() => {
    const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
    return titansWithState(q, k, v, options);
  });
  const results: [string, Tensor, F64Array][] = [['out', out, expected.out]];
  [...state.memory.weights, ...(state.memory.gamma ? [state.memory.gamma] : [])].forEach((w, i) =>
    results.push([`tensor ${i}`, w, expected.memory[i] as F64Array]),
  );
  state.momentum[0]?.forEach((w, i) => results.push([`momentum ${i}`, w, expected.momentum[i] as F64Array]));
  for (const [name, got, wanted] of results)
    expectErrorRatio(`${name} of ${JSON.stringify(problem)}`, { shape: got.shape, values: await got.read() }, wanted, bound);
  disposeAll([out, ...state.memory.weights, state.memory.gamma, ...state.momentum.flat(), ...state.point.weights, state.point.gamma]);
}

/** Disposes each tensor once. */
export function disposeAll(tensors: readonly (Tensor | undefined)[]): void {
  for (const t of new Set(tensors)) t?.dispose();
}

/**
 * Directional derivatives of a weighted sum of the outputs: the device's gradients against central differences of the float64
 * reference, one random direction an operand.
 */
export async function checkGradients(device: Device, problem: Problem): Promise<Record<string, readonly [got: number, expected: number]>> {
  const operands = operandsOf(problem);
  const weightsOfOut = new RandomStream(7, 'cotangent').normal(operands.q.values.length);
  const named: [string, F64Array][] = [
    ['q', operands.q],
    ['k', operands.k],
    ['v', operands.v],
    ['learningRate', operands.learningRate],
    ['forget', operands.forget],
    ...operands.momentum.map((m, o): [string, F64Array] => [`momentum${o}`, m]),
    ...operands.weights.map((w, i): [string, F64Array] => [`w${i}`, w]),
    ...(operands.gamma ? [['gamma', operands.gamma] as [string, F64Array]] : []),
  ];
  const loss = (): number => {
    const { out } = referenceTitans(operands.q, operands.k, operands.v, referenceOptions(operands, problem));
    return out.values.reduce((sum, x, i) => sum + x * (weightsOfOut[i] as number), 0);
  };
  const grads = scope(() => {
    const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
    const momentum = (options.momentum ?? []) as readonly Tensor[];
    const { memory } = options;
    const inputs = [q, k, v, options.learningRate, options.forget, ...momentum, ...memory.weights, ...(memory.gamma ? [memory.gamma] : [])];
    const cotangent = tensor(device, weightsOfOut, q.shape);
    return vjp(() => titansWithState(q, k, v, options).out, inputs, [cotangent]).grads;
  });
  const result: Record<string, readonly [number, number]> = {};
  for (const [i, [name, array]] of named.entries()) {
    const direction = new RandomStream(11, name).normal(array.values.length);
    const values = await (grads[i] as Tensor).read();
    const got = direction.reduce((sum, x, j) => sum + x * (values[j] as number), 0);
    const step = 1e-5;
    const move = (by: number): void => direction.forEach((x, j) => (array.values[j]! += by * x));
    move(step);
    const above = loss();
    move(-2 * step);
    const below = loss();
    move(step);
    result[name] = [got, (above - below) / (2 * step)];
  }
  disposeAll(grads);
  return result;
}
