import { empty } from '../tensor/create.js';
import { contiguousStrides, type Tensor } from '../tensor/tensor.js';
import { bindCall, type Bound, foldedScale, rowLoad } from './bind.js';
import { dOutStrides, type Prepared } from './backward-queries.js';
import type { AttentionCall } from './call.js';
import { runDkvKernel } from './kernels/dkv.js';
import { runMatrixBackward } from './kernels/matrix-backward.js';
import { runRowBackward } from './kernels/row-backward.js';
import { runPlaceParts, runSumParts, runSumRows } from './kernels/stats.js';
import { type AttentionPlan, leadingKeyTiles, partsOfQueries, sweepSizes } from './plan.js';

/** dk, dv and dBias of `keys` leading keys of each batch entry in one buffer of f32 or the dtype of k; one or more parts of it. */
interface KeyBuffer {
  keys: number;
  parts: number;
  dvAt: number;
  dBiasAt: number;
  /** Elements of a part. */
  partSize: number;
}

/**
 * Gradients of k, v and the key bias. Where few key tiles meet many queries the sweep is cut into parts, which are summed in order:
 * all of it where there are few key tiles, the leading tiles alone where they are sinks that every query sees.
 */
export function gradientsOfKeys(
  call: AttentionCall,
  prepared: Prepared,
  plan: AttentionPlan['dkv'],
  bias: Tensor | undefined,
): { k: Tensor; v: Tensor; keyBias: Tensor | undefined } {
  const { device, sizes, visibility, selection } = call;
  const { k, v } = prepared.inputs;
  const { rows, columns } = sweepSizes(plan);
  const width = plan.fragments ? (call.halves ? 8 : 4) : plan.inRegisters ? 4 : plan.tile.width;
  const bits = (plan.fragments ?? plan.inRegisters) !== undefined;
  const bound = bindCall(call, prepared.inputs, {
    width,
    tiles: { query: columns, key: rows },
    transposed: true,
    rows: [prepared.dOut],
    bits,
  });
  const banded = bound.spec.list === 'band' && visibility.mask === undefined;
  const leading = plan.splits === 1 && banded ? leadingKeyTiles(sizes, visibility.band, rows) : 0;
  const keyTiles = selection ? selection.keyBlocks * Math.ceil(selection.blockKeys / rows) : Math.ceil(sizes.keys / rows);
  const inParts = plan.splits > 1 || leading > 0 || bias !== undefined;
  const layout = bufferOf(call, sizes.keys, plan.splits, bias !== undefined);
  const grads = empty(device, [layout.partSize * layout.parts], inParts ? 'f32' : k.dtype, 'attention dk and dv');
  const biasGradient = bias !== undefined;
  sweep(call, prepared, plan, bound, { grads, layout, firstTile: leading, tiles: keyTiles - leading, biasGradient });
  if (leading > 0) {
    const small = bufferOf(call, Math.min(sizes.keys, leading * rows), partsOfQueries(sizes.queries), biasGradient);
    const parts = empty(device, [small.partSize * small.parts], 'f32', 'attention dk and dv of leading keys');
    sweep(call, prepared, plan, bound, { grads: parts, layout: small, firstTile: 0, tiles: leading, biasGradient });
    placeLeading(call, parts, small, grads, layout, biasGradient);
  }
  let summed = grads;
  if (layout.parts > 1 || (inParts && k.dtype !== 'f32')) {
    summed = empty(device, [layout.dBiasAt], k.dtype);
    runSumParts(device, grads, summed, layout.parts, layout.partSize);
  }
  return {
    k: summed.view({ shape: k.shape, strides: contiguousStrides(k.shape), offset: 0 }),
    v: summed.view({ shape: v.shape, strides: contiguousStrides(v.shape), offset: layout.dvAt }),
    keyBias: bias && sumKeyBias(call, grads, bias, layout),
  };
}

function bufferOf({ sizes }: AttentionCall, keys: number, parts: number, biasGradient: boolean): KeyBuffer {
  const { batch, heads, kvHeads, headDim, valueDim } = sizes;
  const eights = (n: number): number => Math.ceil(n / 8) * 8;
  const dvAt = eights(batch * keys * kvHeads * headDim);
  const dBiasAt = dvAt + eights(batch * keys * kvHeads * valueDim);
  return { keys, parts, dvAt, dBiasAt, partSize: dBiasAt + (biasGradient ? eights(batch * heads * keys) : 0) };
}

/** One dispatch over `tiles` key tiles from `firstTile` on. */
function sweep(
  call: AttentionCall,
  { inputs, dOut, stats }: Prepared,
  { tile, shuffles, fragments, inRegisters }: AttentionPlan['dkv'],
  bound: Bound,
  into: { grads: Tensor; layout: KeyBuffer; firstTile: number; tiles: number; biasGradient: boolean },
): void {
  const { device, sizes } = call;
  const { batch, kvHeads, headDim, valueDim } = sizes;
  const { grads, layout, firstTile, biasGradient } = into;
  const { parts: splits, keys: storedKeys, ...places } = layout;
  const split = splits > 1;
  const vectorOut =
    ((fragments ?? inRegisters) !== undefined || tile.width === 4) && headDim % 4 === 0 && valueDim % 4 === 0 && !biasGradient;
  const tensors = { q: inputs.q, k: inputs.k, v: inputs.v, dOut, stats, arena: bound.arena, extras: bound.extras, grads };
  const uniforms = { splits, firstTile, storedKeys, ...bound.uniforms, ...dOutStrides(dOut, bound.item), ...places };
  const grid = [into.tiles * splits, kvHeads, batch] as const;
  if (fragments) {
    const { fold, hidden } = foldedScale(bound, call.scale);
    const ordered = bound.order !== undefined;
    const spec = { load: rowLoad(bound.item), fold, ordered, vectorOut, split, biasGradient, ...bound.spec, ...fragments };
    runMatrixBackward(device, 'keys', spec, { ...tensors, order: bound.order }, { hidden, tiles: 0, ...uniforms }, [
      kvHeads,
      into.tiles * splits,
      batch,
    ]);
  } else if (inRegisters) {
    const spec = { vectorOut, split, biasGradient, ...bound.spec, ...inRegisters };
    runRowBackward(device, 'keys', spec, tensors, { tiles: 0, ...uniforms }, [kvHeads, into.tiles * splits, batch]);
  } else runDkvKernel(device, { ...bound.spec, ...tile, shuffles, vectorOut, split, biasGradient }, tensors, uniforms, grid);
}

/** Sums the parts of the leading keys to where they belong. */
function placeLeading(
  { device, sizes }: AttentionCall,
  parts: Tensor,
  small: KeyBuffer,
  grads: Tensor,
  layout: KeyBuffer,
  biasGradient: boolean,
): void {
  const { batch, heads, kvHeads, headDim, valueDim } = sizes;
  const place = (rows: number, width: number, from: number, to: number): void =>
    runPlaceParts(device, parts, grads, {
      parts: small.parts,
      stride: small.partSize,
      rows,
      width: small.keys * width,
      from,
      to,
      toRow: layout.keys * width,
    });
  place(batch, kvHeads * headDim, 0, 0);
  place(batch, kvHeads * valueDim, small.dvAt, layout.dvAt);
  if (biasGradient) place(batch * heads, 1, small.dBiasAt, layout.dBiasAt);
}

function sumKeyBias({ device, sizes }: AttentionCall, grads: Tensor, bias: Tensor, { parts, partSize, dBiasAt }: KeyBuffer): Tensor {
  const { batch, heads, keys } = sizes;
  const [outBatch = 1, outHeads = 1] = bias.rank === 1 ? [1, 1] : bias.shape;
  const out = empty(device, bias.shape, bias.dtype);
  const rows = grads.view({ shape: [grads.size - dBiasAt], strides: [1], offset: dBiasAt });
  runSumRows(device, rows, out, { parts, stride: partSize, batch, heads, columns: keys, outBatch, outHeads });
  return out;
}
