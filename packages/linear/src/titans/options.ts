import { HeedError, type Tensor } from '@heed/core';
import { type TitansActivation, titansActivations } from './activation.js';
import { tensorsOf, type TitansMemory } from './memory.js';

/** What does not change from call to call of a sequence. */
export interface TitansForm {
  /** Tokens a chunk: the steps in which the memory is written and read. Changes the result. */
  chunkSize: number;
  /**
   * Tokens between two moves of the weights at which gradients are taken, a multiple of chunkSize; null (default): they are taken
   * at the first weights throughout, and all chunks are parallel. chunkSize 1 and gradientPeriod 1 is the paper's recurrence.
   */
  gradientPeriod?: number | null;
  /** Between the layers of the memory. Default `gelu` (exact). */
  activation?: TitansActivation;
  /** Of the squared error over headDim. Default `mean`; `sum` is the paper's, headDim times the step. */
  lossReduction?: 'mean' | 'sum';
  /** Of the layer norm in the residual wrapper. Default 1e-5. */
  lnEpsilon?: number;
  /** A chunk's gradient g of a tensor becomes g m tanh(|g| / m) / |g|. Default: none. */
  gradientClamp?: number;
  /** Updates of matrices are made nearly orthogonal by five Newton-Schulz steps. Default false. */
  orthogonalize?: boolean;
  /** Where the gradient point moves, weights w become w + gate (new - w): numbers in (0, 1), f32 [1]. Default: none. */
  transition?: Tensor;
  /** Most chunks whose weights exist at a time. Default: as many as take 256 MiB a tensor. Any value gives the same result. */
  inFlight?: number;
  /** Runs groups of chunks again in the backward pass in place of keeping what is between their ends. Default false. */
  recompute?: boolean;
  /** `f16` rounds operands of products to f16 where the device has tensor cores; weights, momentum and sums stay f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Weights of each (batch entry, head), what they are driven by, and where the recurrence stands. */
export interface TitansMemoryState {
  /** Tensors [batch, heads, ...]. */
  memory: TitansMemory;
  /** One list an order of momentum, in the order weights, gamma. */
  momentum: readonly (readonly Tensor[])[];
  /** Where gradients are taken. */
  point: TitansMemory;
  /** Chunks stored so far. */
  chunks: number;
}

/** Options of `titans`. */
export interface TitansOptions extends TitansForm {
  /** The learned start of the memory, tensors [heads, ...]; `gamma` switches the residual wrapper on. */
  memory: TitansMemory;
  /** theta, step of each token, f32 [batch, tokens, heads]. */
  learningRate: Tensor;
  /** eta, share of the momentum that stays, f32 [batch, chunks, heads], chunks = floor(tokens / chunkSize); one an order. Default: no momentum. */
  momentum?: Tensor | readonly Tensor[];
  /** alpha, share of the memory that goes, f32 [batch, chunks, heads]. */
  forget: Tensor;
  /** Goes on from here in place of `memory`, behind whole chunks. */
  initialState?: TitansMemoryState;
}

/** The momentum tensors of an option, one an order. */
export function ordersOf(momentum: TitansOptions['momentum']): readonly Tensor[] {
  if (momentum === undefined) return [];
  return 'storage' in momentum ? [momentum as Tensor] : momentum;
}

function wrong(who: string, message: string): never {
  throw new HeedError('SHAPE_MISMATCH', `${who}: ${message}`);
}

/** @throws HeedError INVALID_ARGUMENT for settings that make no sense */
export function checkForm(who: string, form: TitansForm): void {
  const { chunkSize, gradientPeriod = null, activation = 'gelu', inFlight = 1, lnEpsilon = 1e-5, gradientClamp = 1 } = form;
  const invalid = (message: string): never => {
    throw new HeedError('INVALID_ARGUMENT', `${who}: ${message}`);
  };
  if (!Number.isInteger(chunkSize) || chunkSize < 1) invalid(`chunkSize is ${chunkSize}; it must be an integer of 1 or more`);
  if (gradientPeriod !== null && (!Number.isInteger(gradientPeriod) || gradientPeriod < 1 || gradientPeriod % chunkSize !== 0))
    invalid(`gradientPeriod is ${gradientPeriod}; it must be null or a multiple of chunkSize ${chunkSize}`);
  if (!titansActivations.includes(activation)) invalid(`activation is "${String(activation)}"; use one of ${titansActivations.join(', ')}`);
  if (!Number.isInteger(inFlight) || inFlight < 1) invalid(`inFlight is ${inFlight}; it must be an integer of 1 or more`);
  if (!(lnEpsilon > 0)) invalid(`lnEpsilon is ${lnEpsilon}; it must be above 0`);
  if (!(gradientClamp > 0)) invalid(`gradientClamp is ${gradientClamp}; it must be above 0`);
}

/** @throws HeedError SHAPE_MISMATCH when the tensors of a memory do not lead from headDim to headDim */
export function checkMemory(who: string, memory: TitansMemory, heads: number, headDim: number): void {
  if (memory.weights.length === 0) wrong(who, 'the memory has no weights; give at least one matrix [heads, headDim, headDim]');
  let inputs = headDim;
  memory.weights.forEach((w, i) => {
    const outputs = i === memory.weights.length - 1 ? headDim : (w.shape[2] ?? 0);
    if (w.shape.join() !== [heads, inputs, outputs].join())
      wrong(
        who,
        `weight ${i + 1} of the memory is ${w.describe()}; it must be [${heads}, ${inputs}, ${i === memory.weights.length - 1 ? headDim : 'hidden'}]`,
      );
    inputs = outputs;
  });
  if (memory.gamma && memory.gamma.shape.join() !== [heads, headDim].join())
    wrong(who, `gamma is ${memory.gamma.describe()}; it must be [${heads}, ${headDim}]`);
  for (const w of tensorsOf(memory))
    if (w.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: ${w.describe()} in the memory; memories are f32, cast it first`);
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT: what is wrong with the arguments */
export function checkArguments(who: string, q: Tensor, k: Tensor, v: Tensor, options: TitansOptions, pending = 0): void {
  checkForm(who, options);
  for (const [name, x] of [
    ['q', q],
    ['k', k],
    ['v', v],
  ] as const) {
    if (x.rank !== 4) wrong(who, `${name} is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
    if (x.shape.join() !== q.shape.join()) wrong(who, `${name} is ${x.describe()}, q is ${q.describe()}; q, k and v must have one shape`);
  }
  const [batch, tokens, heads, headDim] = q.shape as [number, number, number, number];
  const { memory, learningRate, forget, initialState, chunkSize } = options;
  checkMemory(who, memory, heads, headDim);
  const chunks = Math.floor((pending + tokens) / chunkSize);
  const expect = (name: string, x: Tensor, rows: number, why: string): void => {
    if (x.shape.join() !== [batch, rows, heads].join())
      wrong(who, `${name} is ${x.describe()}; it must be [${batch}, ${rows}, ${heads}]: batch, ${why}, heads`);
  };
  expect('learningRate', learningRate, tokens, 'tokens');
  expect('forget', forget, chunks, 'whole chunks');
  const orders = ordersOf(options.momentum);
  for (const eta of orders) expect('momentum', eta, chunks, 'whole chunks');
  if (initialState && !Array.isArray(initialState.momentum))
    throw new HeedError('INVALID_ARGUMENT', `${who}: initialState is no state of a memory; give what titansWithState returned`);
  if (initialState && initialState.momentum.length !== orders.length)
    wrong(who, `the state has ${initialState.momentum.length} orders of momentum, ${orders.length} were given; they must be as many`);
}
