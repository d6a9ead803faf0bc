import { HeedError } from '../errors.js';
import { empty, zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { bindCall, type CallTensors, foldedScale, rowLoad } from './bind.js';
import type { AttentionCall } from './call.js';
import { renderTerms } from './code.js';
import { queryTiles } from './forward.js';
import { runCapturedKernel, runCapturedValues } from './kernels/captured.js';
import { runDqKernel } from './kernels/dq.js';
import { accumulatorWords } from './kernels/fixed-point.js';
import { runMatrixBackward } from './kernels/matrix-backward.js';
import { runRowBackward } from './kernels/row-backward.js';
import { ownedRows } from './kernels/row-lanes.js';
import type { AttentionPlan, TilePlan } from './plan.js';
import { itemStrides } from './problem.js';

/** What a backward pass starts from. */
export interface BackwardInputs extends CallTensors {
  out: Tensor;
  lse: Tensor;
  dOut: Tensor | null;
  dLse: Tensor | null;
}

/** What the sweeps share: row statistics and a dOut that can be read as q is. */
export interface Prepared {
  inputs: BackwardInputs;
  dOut: Tensor;
  stats: Tensor;
}

/** Strides of dOut in items of its binding. */
export function dOutStrides(dOut: Tensor, item: number): { dOutBatch: number; dOutRow: number; dOutHead: number } {
  const [dOutBatch, dOutRow, dOutHead] = itemStrides(dOut, item);
  return { dOutBatch, dOutRow, dOutHead };
}

/** dq by the walk over keys. */
export function gradientOfQ(
  call: AttentionCall,
  { inputs, dOut, stats }: Prepared,
  { tile, shuffles, fragments, inRegisters }: AttentionPlan['dq'],
): Tensor {
  const { device, sizes } = call;
  const { q, k, v } = inputs;
  const dq = empty(device, q.shape, q.dtype);
  const places = { splits: 1, dvAt: 0, dBiasAt: 0, partSize: 0, firstTile: 0, storedKeys: 0 };
  const none = { split: false, biasGradient: false, vectorOut: sizes.headDim % 4 === 0 };
  if (fragments) {
    const tiles = { query: fragments.rows, key: fragments.columns };
    const bound = bindCall(call, inputs, { width: call.halves ? 8 : 4, tiles, transposed: false, rows: [dOut], bits: true });
    const count = queryTiles(call, fragments.rows);
    const { fold, hidden } = foldedScale(bound, call.scale);
    runMatrixBackward(
      device,
      'queries',
      { load: rowLoad(bound.item), fold, ordered: bound.order !== undefined, ...bound.spec, ...fragments, ...none },
      { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, order: bound.order, grads: dq },
      { hidden, tiles: count, ...bound.uniforms, ...dOutStrides(dOut, bound.item), ...places },
      [sizes.heads, count, sizes.batch],
    );
    return dq;
  }
  if (inRegisters) {
    const rows = ownedRows(inRegisters);
    const tiles = { query: rows, key: inRegisters.columns };
    const bound = bindCall(call, inputs, { width: 4, tiles, transposed: false, rows: [dOut], bits: true });
    const count = queryTiles(call, rows);
    runRowBackward(
      device,
      'queries',
      { ...bound.spec, ...inRegisters, ...none },
      { q, k, v, dOut, stats, arena: bound.arena, extras: bound.extras, grads: dq },
      { tiles: count, ...bound.uniforms, ...dOutStrides(dOut, bound.item), ...places },
      [sizes.heads, count, sizes.batch],
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
    { tiles, ...bound.uniforms, ...dOutStrides(dOut, bound.item) },
    [tiles, sizes.heads, sizes.batch],
  );
  return dq;
}

/** Gradients of what the score function captures, where wanted; null elsewhere. */
export function capturedGradients(
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
    { tiles, firstAt: first.map((f) => f.at), ...bound.uniforms, ...dOutStrides(dOut, bound.item) },
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
