import { dtypeBytes } from '../dtype.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { exprFunction, type Expr, type ExprFunction, substitute, uniform, variable } from '../kernel/expr/index.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import type { CallTensors } from './bind.js';
import { type AttentionCall, prepareCall } from './call.js';
import type { AttentionOptions } from './options.js';
import { type Band, unbounded } from './problem.js';
import type { ScoreMod } from './score.js';

/** Tokens first .. first + count - 1. */
export interface TokenRange {
  first: number;
  count: number;
}

/** Queries of one batch entry and the keys that they may see, in ranges that fit a binding. */
export interface QueryPiece {
  entry: number;
  queries: TokenRange;
  keys: readonly TokenRange[];
}

/** Keys of one batch entry and the queries that may see them. */
export interface KeyPiece {
  entry: number;
  keys: TokenRange;
  queries: readonly TokenRange[];
}

/** What the cut of a call depends on. */
export interface PieceProblem {
  batch: number;
  queries: number;
  keys: number;
  /** Position of the first query row; undefined where it differs by batch entry. */
  queryOffset: number | undefined;
  band: Band;
  /** Bytes from one query token to the next, and from one key token to the next: the largest of the tensors that have them. */
  queryBytes: number;
  keyBytes: number;
  /** Bytes of a query token's output in f32: what is merged where its keys lie in several ranges. */
  partBytes: number;
  /** Bytes of a key token's gradients in f32. */
  gradientBytes: number;
  bindingBytes: number;
}

// Windows begin and end at multiples of 256 bytes.
const slack = 512;
// Ranges begin at multiples of this, so that views keep their alignment.
const granule = 64;

const down = (n: number): number => Math.floor(n / granule) * granule;
const up = (n: number): number => Math.ceil(n / granule) * granule;

/** Tokens whose rows fit a binding. */
function fitting(tokenBytes: number, bindingBytes: number): number {
  return Math.max(granule, down((bindingBytes - slack) / tokenBytes));
}

/** Tokens from `first` to before `end` in even ranges of at most `most`. */
function ranges(first: number, end: number, most: number): TokenRange[] {
  const count = Math.ceil((end - first) / most);
  const size = up((end - first) / Math.max(1, count));
  return Array.from({ length: Math.ceil((end - first) / Math.max(1, size)) }, (_, i) => ({
    first: first + i * size,
    count: Math.min(size, end - first - i * size),
  }));
}

/** Keys from one query's first to its last visible one; infinite where a side is open. */
function reachOf({ band, queryOffset }: PieceProblem): number {
  return queryOffset === undefined || band.left >= unbounded || band.right >= unbounded ? Infinity : band.left + band.right + 1;
}

/** A call by its queries: whole key ranges where a band lets them fit one binding, else ranges whose results are merged. Pure. */
export function planQueryPieces(problem: PieceProblem): QueryPiece[] {
  const { batch, queries, keys, queryOffset = 0, band, bindingBytes } = problem;
  const mostKeys = fitting(problem.keyBytes, bindingBytes);
  const narrow = mostKeys - up(reachOf(problem)) - granule;
  const together = keys <= mostKeys;
  const merged = together ? 1 : (narrow >= granule ? 1 : Math.ceil(keys / mostKeys)) + Math.ceil(band.prefix / mostKeys);
  let most = fitting(problem.queryBytes, bindingBytes);
  if (!together && narrow >= granule) most = Math.min(most, down(narrow));
  if (merged > 1) most = Math.min(most, fitting(merged * problem.partBytes, bindingBytes));
  const known = problem.queryOffset !== undefined;
  const keysOf = ({ first, count }: TokenRange): TokenRange[] => {
    const low = known && band.left < unbounded ? Math.max(0, down(queryOffset + first - band.left)) : 0;
    const high = known ? Math.min(keys, queryOffset + first + count + band.right) : keys;
    if (together || high <= 0) return [{ first: 0, count: together ? keys : Math.min(granule, keys) }];
    if (low <= band.prefix) return ranges(0, high, mostKeys);
    const own = low < high ? ranges(low, high, mostKeys) : [];
    const leading = ranges(0, Math.min(band.prefix, high), mostKeys);
    return leading.length + own.length > 0 ? [...leading, ...own] : [{ first: 0, count: Math.min(granule, keys) }];
  };
  return entries(batch).flatMap((entry) => ranges(0, queries, most).map((own) => ({ entry, queries: own, keys: keysOf(own) })));
}

/** A call by its keys, as its backward sweeps them. Pure. */
export function planKeyPieces(problem: PieceProblem): KeyPiece[] {
  const { batch, queries, keys, queryOffset = 0, band, bindingBytes } = problem;
  const mostQueries = fitting(problem.queryBytes, bindingBytes);
  const narrow = mostQueries - up(reachOf(problem)) - granule;
  let most = Math.min(fitting(problem.keyBytes, bindingBytes), fitting(problem.gradientBytes, bindingBytes));
  if (queries > mostQueries && narrow >= granule) most = Math.min(most, down(narrow));
  const known = problem.queryOffset !== undefined;
  const queriesOf = ({ first, count }: TokenRange): TokenRange[] => {
    const low = known ? Math.max(0, down(first - band.right - queryOffset)) : 0;
    const open = !known || band.left >= unbounded || first < band.prefix;
    const high = open ? queries : Math.min(queries, first + count + band.left - queryOffset);
    return low < high ? ranges(low, high, mostQueries) : [];
  };
  return entries(batch).flatMap((entry) => ranges(0, keys, most).map((own) => ({ entry, keys: own, queries: queriesOf(own) })));
}

function entries(batch: number): number[] {
  return Array.from({ length: batch }, (_, i) => i);
}

/**
 * How a call is cut whose tensors are larger than a binding; undefined where they fit.
 * @throws HeedError LIMIT_EXCEEDED for masks and selections, whose lists are of the whole call
 */
export function pieceProblem(call: AttentionCall, { q, k, v }: CallTensors): PieceProblem | undefined {
  const { device, sizes, visibility } = call;
  const { batch, queries, keys, heads, kvHeads, headDim, valueDim } = sizes;
  const bindingBytes = device.limits.maxStorageBufferBindingSize;
  const outBytes = Math.max(heads * valueDim * dtypeBytes(q.dtype), heads * 4);
  const whole = [q, k, v].every((t) => t.storage.bytes <= bindingBytes || t.extent * dtypeBytes(t.dtype) + slack <= bindingBytes);
  if (whole && batch * queries * outBytes <= bindingBytes) return undefined;
  if (visibility.mask || call.selection)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `attention: q ${q.describe()}, k ${k.describe()} or the output is larger than a binding of this device (${bindingBytes} bytes), and a mask or ` +
        'selection lists tiles of the whole call; split the batch or heads axis, or say the mask as causal, window and sinkTokens',
    );
  const tokenBytes = (t: Tensor): number => Math.max(1, t.strides[1] ?? 1) * dtypeBytes(t.dtype);
  return {
    batch,
    queries,
    keys,
    queryOffset: call.queryOffset,
    band: visibility.band,
    queryBytes: Math.max(tokenBytes(q), outBytes),
    keyBytes: Math.max(tokenBytes(k), tokenBytes(v)),
    partBytes: heads * valueDim * 4,
    gradientBytes: 4 * (kvHeads * (headDim + valueDim) + heads),
    bindingBytes,
  };
}

/** Tokens of one batch entry of x, [batch, tokens, ...]. */
export function tokensOf(x: Tensor, entry: number, { first, count }: TokenRange): Tensor {
  const offset = x.offset + entry * (x.strides[0] ?? 0) + first * (x.strides[1] ?? 0);
  return x.view({ shape: [1, count, ...x.shape.slice(2)], offset });
}

/** Options that mean the same wherever a part begins; a mask that is left is a band. */
const unmoved = ['causal', 'window', 'mask', 'softcap', 'precision'] as const;

/** Part of a call as a call of its own: positions count from its first key. */
export function pieceCall(
  call: AttentionCall,
  { q, k, v, arrays }: CallTensors,
  { entry, queries, keys, sinks }: { entry: number; queries: TokenRange; keys: TokenRange; sinks: boolean },
): { call: AttentionCall; tensors: CallTensors } {
  const { options } = call;
  const { alibi, scoreMod: mod, sinkTokens = 0 } = options;
  const array = (name: string): Tensor | undefined => arrays[call.arrays.findIndex((a) => a.name === name)];
  const [lengths, offsets, learned, bias, slopes] = ['lengths', 'offsets', 'sinks', 'keyBias', 'score heedSlopes'].map(array);
  const leading = Math.max(0, sinkTokens - keys.first);
  const shift = keys.first - queries.first;
  const part: AttentionOptions = {
    ...Object.fromEntries(unmoved.map((name) => [name, options[name]]).filter(([, value]) => value !== undefined)),
    scale: call.scale,
    queryOffset: offsets ? numberLess(offsets, entry, shift) : (call.queryOffset ?? 0) - shift,
    ...(leading > 0 && { sinkTokens: leading }),
    ...(lengths && { lengths: numberLess(lengths, entry, keys.first) }),
    ...(learned && sinks && { sinks: learned }),
    ...(bias && { keyBias: biasOf(bias, entry, keys) }),
    ...(alibi && slopes && { alibi: slopes }),
    ...(mod && { scoreMod: shifted(mod, (name) => array(`score ${name}`), entry, keys.first) }),
  };
  const [partQ, partK, partV] = [tokensOf(q, entry, queries), tokensOf(k, entry, keys), tokensOf(v, entry, keys)];
  const made = prepareCall('attention', partQ, partK, partV, part);
  return { call: made, tensors: { q: partQ, k: partK, v: partV, arrays: made.arrays.map((a) => a.tensor), selection: [] } };
}

/** The key bias of a range of keys of one batch entry. */
export function biasOf(bias: Tensor, entry: number, { first, count }: TokenRange): Tensor {
  const { shape, strides } = bias;
  if (bias.rank === 1) return bias.view({ shape: [count], strides, offset: bias.offset + first });
  const from = (shape[0] ?? 1) > 1 ? entry * (strides[0] ?? 0) : 0;
  return bias.view({ shape: [1, shape[1] ?? 1, count], strides, offset: bias.offset + from + first });
}

// One number of an array, less a constant: a length or an offset, counted from a part's first key.
// tile    one lane
// bytes   reads and writes 4
// limits  i32
const difference = defineKernel({
  name: 'attention-piece-number',
  bindings: { x: read('i32'), out: write('i32') },
  uniforms: { at: 'u32', less: 'i32' },
  wgsl: () => '@compute @workgroup_size(1) fn main() { store_out(0u, load_x(uniforms.at) - uniforms.less); }',
});

function numberLess(x: Tensor, entry: number, less: number): Tensor {
  const out = empty(x.device, [1], 'i32');
  difference.run(x.device, { spec: {}, tensors: { x, out }, uniforms: { at: entry * (x.strides[0] ?? 1), less }, grid: [1] });
  return out;
}

let shiftedFunctions: WeakMap<ExprFunction, ExprFunction> | undefined;

/** A score function that meets the positions of the whole call. */
function shifted(mod: ScoreMod, capture: (name: string) => Tensor | undefined, entry: number, firstKey: number): ScoreMod {
  shiftedFunctions ??= new WeakMap();
  let fn = shiftedFunctions.get(mod.fn);
  if (!fn) {
    const { inputs, body } = mod.fn;
    const moved = ([at, by]: readonly [number, string]): [string, Expr<'i32'>] => {
      const { name } = inputs[at] as { name: string };
      return [name, variable(name, 'i32').add(uniform(by, 'i32'))];
    };
    const places = [[1, 'heedEntry'] as const, [3, 'heedFirstKey'] as const, [4, 'heedFirstKey'] as const];
    fn = exprFunction(inputs, substitute(body, { variables: Object.fromEntries(places.map(moved)) }));
    shiftedFunctions.set(mod.fn, fn);
  }
  const captures = Object.fromEntries(mod.fn.captures.map(({ name }) => [name, capture(name) as Tensor]));
  return { fn, captures, uniforms: { ...mod.uniforms, heedEntry: entry, heedFirstKey: firstKey } };
}
