import { dtypeBytes } from '../dtype.js';
import { HeedError } from '../errors.js';
import { asContiguous } from '../tensor/copy.js';
import { empty, zeros } from '../tensor/create.js';
import { contiguousStrides, type Tensor } from '../tensor/tensor.js';
import { bindCall, type CallTensors, foldedScale, rowLoad } from './bind.js';
import type { AttentionCall } from './call.js';
import { planCall, queryTiles } from './forward.js';
import { renderTerms } from './code.js';
import { runCapturedKernel, runCapturedValues } from './kernels/captured.js';
import { runDkvKernel } from './kernels/dkv.js';
import { runDqKernel } from './kernels/dq.js';
import { runMatrixBackward } from './kernels/matrix-backward.js';
import { accumulatorWords } from './kernels/fixed-point.js';
import { runSinkGradient, runStats, runSumParts, runSumRows, runUnit } from './kernels/stats.js';
import type { AttentionPlan, TilePlan } from './plan.js';
import { itemStrides } from './problem.js';

/** What a backward pass starts from. */
export interface BackwardInputs extends CallTensors {
  out: Tensor;
  lse: Tensor;
  dOut: Tensor | null;
  dLse: Tensor | null;
}

/** Which gradients are wanted: of q, k, v, and of each of the call's arrays. */
export interface Wanted {
  q: boolean;
  k: boolean;
  v: boolean;
  arrays: readonly boolean[];
}

export interface AttentionGradients {
  q: Tensor | null;
  k: Tensor | null;
  v: Tensor | null;
  /** In the order of the call's arrays. */
  arrays: (Tensor | null)[];
}

/** What the sweeps share: row statistics and a dOut that can be read as q is. */
interface Prepared {
  inputs: BackwardInputs;
  dOut: Tensor;
  stats: Tensor;
}

/** Gradients of an attention call. Deterministic: every sum has a fixed order. */
export function runBackward(
  call: AttentionCall,
  inputs: BackwardInputs,
  wanted: Wanted,
  plan: AttentionPlan = planCall(call),
): AttentionGradients {
  const { device, sizes } = call;
  const { out, lse } = inputs;
  const dOut = inputs.dOut ? asContiguous(inputs.dOut) : undefined;
  const dLse = inputs.dLse ? asContiguous(inputs.dLse, 1) : undefined;
  const stats = empty(device, [lse.size + 1, 2], 'f32', 'attention statistics');
  runStats(device, { out, lse, dOut, dLse, stats });
  const prepared = { inputs, dOut: dOut ?? zeros(device, out.shape, { dtype: out.dtype }), stats };
  if (plan.dq.fragments) runUnit(device, prepared.dOut, stats, lse.size);
  const arrays: (Tensor | null)[] = call.arrays.map(() => null);
  const indexOf = (name: string): number => call.arrays.findIndex((array) => array.name === name);
  const wants = (name: string): boolean => wanted.arrays[indexOf(name)] ?? false;
  if (wants('sinks')) {
    const sinks = inputs.arrays[indexOf('sinks')] as Tensor;
    const dSinks = empty(device, sinks.shape, sinks.dtype);
    runSinkGradient(device, { stats, sinks: asContiguous(sinks, 1), dSinks }, sizes.batch * sizes.queries);
    arrays[indexOf('sinks')] = dSinks;
  }
  capturedGradients(call, prepared, plan.dq, wanted.arrays).forEach((gradient, i) => {
    if (gradient) arrays[i] = gradient;
  });
  const q = wanted.q ? gradientOfQ(call, prepared, plan.dq) : null;
  const biasGradient = wants('keyBias');
  if (!wanted.k && !wanted.v && !biasGradient) return { q, k: null, v: null, arrays };
  const bias = biasGradient ? (inputs.arrays[indexOf('keyBias')] as Tensor) : undefined;
  const { k, v, keyBias } = gradientsOfKeys(call, prepared, plan.dkv, bias);
  if (keyBias) arrays[indexOf('keyBias')] = keyBias;
  return { q, k, v, arrays };
}

function dOutStrides(dOut: Tensor, item: number): { dOutBatch: number; dOutRow: number; dOutHead: number } {
  const [dOutBatch, dOutRow, dOutHead] = itemStrides(dOut, item);
  return { dOutBatch, dOutRow, dOutHead };
}

function gradientOfQ(call: AttentionCall, { inputs, dOut, stats }: Prepared, { tile, shuffles, fragments }: AttentionPlan['dq']): Tensor {
  const { device, sizes } = call;
  const { q, k, v } = inputs;
  const dq = empty(device, q.shape, q.dtype);
  if (fragments) {
    const tiles = { query: fragments.rows, key: fragments.columns };
    const bound = bindCall(call, inputs, { width: call.halves ? 8 : 4, tiles, transposed: false, rows: [dOut] });
    const count = queryTiles(call, fragments.rows);
    const { fold, hidden } = foldedScale(bound, call.scale);
    const vectorOut = sizes.headDim % 4 === 0;
    runMatrixBackward(
      device,
      'queries',
      { ...bound.spec, ...fragments, load: rowLoad(bound.item), fold, vectorOut, split: false, biasGradient: false },
      { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, grads: dq },
      { ...bound.uniforms, ...dOutStrides(dOut, bound.item), hidden, tiles: count, splits: 1, dvAt: 0, dBiasAt: 0, partSize: 0 },
      [count, sizes.heads, sizes.batch],
    );
    return dq;
  }
  const bound = bindCall(call, inputs, {
    width: tile.width,
    tiles: { query: tile.rows, key: tile.columns },
    transposed: false,
    rows: [dOut],
  });
  const tiles = queryTiles(call, tile.rows);
  const vectorOut = tile.width === 4 && sizes.headDim % 4 === 0;
  runDqKernel(
    device,
    { ...bound.spec, ...tile, shuffles, vectorOut },
    { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, dq },
    { ...bound.uniforms, ...dOutStrides(dOut, bound.item), tiles },
    [tiles, sizes.heads, sizes.batch],
  );
  return dq;
}

/** Gradients of what the score function captures, where wanted; null elsewhere. */
function capturedGradients(
  call: AttentionCall,
  { inputs, dOut, stats }: Prepared,
  { tile, shuffles }: TilePlan,
  wanted: readonly boolean[],
): (Tensor | null)[] {
  const { device, sizes, score } = call;
  const { q, k, v } = inputs;
  let elements = 0;
  const first = call.arrays.flatMap(({ name }, i) => {
    if (!wanted[i] || !name.startsWith('score ')) return [];
    const at = elements;
    elements += inputs.arrays[i]?.size ?? 0;
    return [{ index: i, name: name.slice('score '.length), at }];
  });
  if (!score || first.length === 0) return [];
  if (first.length > 8)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `attention: gradients of ${first.length} captured arrays are wanted; at most 8 are supported, put values into one array`,
    );
  const sums = zeros(device, [elements, accumulatorWords], { dtype: 'u32' });
  const bound = bindCall(call, inputs, {
    width: tile.width,
    tiles: { query: tile.rows, key: tile.columns },
    transposed: false,
    rows: [dOut],
  });
  const tiles = queryTiles(call, tile.rows);
  runCapturedKernel(
    device,
    {
      ...bound.spec,
      ...tile,
      shuffles,
      vectorOut: false,
      terms: renderTerms(
        score.fn,
        call.slots,
        first.map((f) => f.name),
      ),
    },
    { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, sums },
    { ...bound.uniforms, ...dOutStrides(dOut, bound.item), tiles, firstAt: first.map((f) => f.at) },
    [tiles, sizes.heads, sizes.batch],
  );
  const gradients: (Tensor | null)[] = call.arrays.map(() => null);
  for (const { index, at } of first) {
    const captured = inputs.arrays[index] as Tensor;
    const gradient = empty(device, captured.shape, captured.dtype);
    runCapturedValues(device, sums, at, gradient);
    gradients[index] = gradient;
  }
  return gradients;
}

/** dk, dv and dBias in one buffer; parts of it are summed, and converted, where the sweep is split or wants f32. */
function gradientsOfKeys(
  call: AttentionCall,
  { inputs, dOut, stats }: Prepared,
  { tile, shuffles, splits, fragments }: AttentionPlan['dkv'],
  bias: Tensor | undefined,
): { k: Tensor; v: Tensor; keyBias: Tensor | undefined } {
  const { device, sizes } = call;
  const { q, k, v } = inputs;
  const { batch, keys, heads, kvHeads, headDim, valueDim } = sizes;
  const split = splits > 1;
  const dvAt = Math.ceil(k.size / 8) * 8;
  const dBiasAt = dvAt + Math.ceil(v.size / 8) * 8;
  const partSize = dBiasAt + (bias ? Math.ceil((batch * heads * keys) / 8) * 8 : 0);
  const inParts = split || bias !== undefined;
  const grads = empty(device, [partSize * splits], inParts ? 'f32' : k.dtype, 'attention dk and dv');
  const { rows, columns } = fragments ?? tile;
  const width = fragments ? (call.halves ? 8 : 4) : tile.width;
  const bound = bindCall(call, inputs, { width, tiles: { query: columns, key: rows }, transposed: true, rows: [dOut] });
  const vectorOut = (fragments !== undefined || tile.width === 4) && headDim % 4 === 0 && valueDim % 4 === 0 && bias === undefined;
  const biasGradient = bias !== undefined;
  const tensors = { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, grads };
  const uniforms = { ...bound.uniforms, ...dOutStrides(dOut, bound.item), splits, dvAt, dBiasAt, partSize };
  const { selection } = call;
  const keyTiles = selection ? selection.keyBlocks * Math.ceil(selection.blockKeys / rows) : Math.ceil(keys / rows);
  const grid = [keyTiles * splits, kvHeads, batch] as const;
  if (fragments) {
    const { fold, hidden } = foldedScale(bound, call.scale);
    const spec = { ...bound.spec, ...fragments, load: rowLoad(bound.item), fold, vectorOut, split, biasGradient };
    runMatrixBackward(device, 'keys', spec, tensors, { ...uniforms, hidden, tiles: 0 }, grid);
  } else runDkvKernel(device, { ...bound.spec, ...tile, shuffles, vectorOut, split, biasGradient }, tensors, uniforms, grid);
  let summed = grads;
  if (split || dtypeBytes(k.dtype) !== 4) {
    if (inParts) {
      summed = empty(device, [dBiasAt], k.dtype);
      runSumParts(device, grads, summed, splits, partSize);
    }
  }
  return {
    k: summed.view({ shape: k.shape, strides: contiguousStrides(k.shape), offset: 0 }),
    v: summed.view({ shape: v.shape, strides: contiguousStrides(v.shape), offset: dvAt }),
    keyBias: bias && sumKeyBias(call, grads, bias, { splits, partSize, dBiasAt }),
  };
}

function sumKeyBias(
  call: AttentionCall,
  grads: Tensor,
  bias: Tensor,
  { splits, partSize, dBiasAt }: { splits: number; partSize: number; dBiasAt: number },
): Tensor {
  const { device, sizes } = call;
  const { batch, heads, keys } = sizes;
  const [outBatch = 1, outHeads = 1] = bias.rank === 1 ? [1, 1] : bias.shape;
  const out = empty(device, bias.shape, bias.dtype);
  const rows = grads.view({ shape: [grads.size - dBiasAt], strides: [1], offset: dBiasAt });
  runSumRows(device, rows, out, { parts: splits, stride: partSize, batch, heads, columns: keys, outBatch, outHeads });
  return out;
}
