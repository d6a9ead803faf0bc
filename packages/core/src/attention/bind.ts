import type { Operand } from '../kernel/bindings.js';
import { constantTable } from '../kernel/constants.js';
import { freeNames } from '../kernel/expr/index.js';
import { sizeOf } from '../tensor/tensor.js';
import type { Tensor } from '../tensor/tensor.js';
import { type MaskArena, maskArena } from './arena.js';
import type { AttentionCall } from './call.js';
import { renderMask, renderScore } from './code.js';
import { packExtras } from './extras.js';
import { makeMaskBits } from './kernels/mask-bits.js';
import { log2e, type ScoreSpec, type ScoreUniforms, type UniformsOf } from './kernels/common.js';
import type { RowLoad } from './kernels/matrix-memory.js';
import type { TileSizes } from './mask/index.js';
import { itemStrides, rowItems } from './problem.js';
import { forwardArena, transposedArena } from './selection.js';

/** Tensors of a call, possibly other handles than those of the options: the backward runs on saved ones. */
export interface CallTensors {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** As the call's `arrays`. */
  arrays: readonly Tensor[];
  /** As the tensors of the call's selection; empty without one. */
  selection: readonly Tensor[];
}

/** How a dispatch walks the call. */
export interface Walk {
  /** The most elements that rows are loaded by. */
  width: 1 | 4 | 8;
  /** Query and key tokens of its tiles. */
  tiles: TileSizes;
  /** The workgroup owns key rows and walks the transposed lists. */
  transposed: boolean;
  /** Further tensors whose rows are loaded as those of q, k and v. */
  rows?: readonly Tensor[];
  /** The kernel reads the visibility of partial tiles as bits. Default false. */
  bits?: boolean;
}

/** Spec, run-time values and buffers that all attention kernels share. */
export interface Bound {
  spec: ScoreSpec;
  uniforms: UniformsOf<ScoreUniforms>;
  extras: Tensor | undefined;
  arena: Operand | undefined;
  /** Row of each token, where they are not in order. */
  order: Operand | undefined;
  /** Elements that rows are loaded by. */
  item: 1 | 4 | 8;
}

/** Binds a call's run-time values for one dispatch. Packed arrays are allocated in the current scope. */
export function bindCall(call: AttentionCall, { q, k, v, arrays, selection }: CallTensors, walk: Walk): Bound {
  const { sizes, options, scale, score, bias, device, visibility } = call;
  const item = rowItems([q, k, v, ...(walk.rows ?? [])], walk.width);
  const extras = packExtras(device, arrays);
  const at = (name: string): number => {
    const index = call.arrays.findIndex((array) => array.name === name);
    return index < 0 ? 0 : (extras.at[index] ?? 0);
  };
  const { mask } = visibility;
  const free = mask && freeNames(mask.predicate);
  // without the queries' positions the host cannot list tiles: every tile is then tested pair by pair
  const listed = mask !== undefined && call.queryOffset !== undefined && !call.selection;
  const needsArena =
    listed || (free?.captures ?? []).some(({ name }) => call.slots.captures.some((c) => c.name === `mask ${name}` && c.buffer === 'arena'));
  const { queries, keys, heads, batch } = sizes;
  const arena =
    mask && needsArena
      ? maskArena(
          device,
          mask,
          listed
            ? {
                queries,
                keys,
                offset: call.queryOffset ?? 0,
                heads,
                batch,
                tiles: walk.tiles,
                transposed: walk.transposed,
                // keys past a batch entry's length are hidden beside the mask
                bits: (walk.bits ?? false) && options.lengths === undefined,
              }
            : undefined,
        )
      : undefined;
  const layout = call.selection;
  const chosen = layout && (walk.transposed ? transposedArena : forwardArena)(layout, selection);
  const [qBatch, qRow, qHead] = itemStrides(q, item);
  const [kBatch, kRow, kHead] = itemStrides(k, item);
  const [vBatch, vRow, vHead] = itemStrides(v, item);
  const bound: Bound = {
    extras: extras.tensor,
    arena: chosen?.operand ?? arena?.operand,
    order: orderTable(call),
    item,
    spec: {
      headDim: sizes.headDim,
      valueDim: sizes.valueDim,
      vector: item === 4,
      list: call.selection ? (walk.transposed ? 'bits' : call.selection.kind) : listed ? 'runs' : 'band',
      counted: chosen?.counted ?? false,
      packed: 0,
      lengths: options.lengths !== undefined,
      offsets: call.queryOffset === undefined,
      keyBias: bias !== undefined,
      sinks: options.sinks !== undefined,
      opaque: device.isSoftware,
      score: score ? renderScore(score.fn, call.slots) : '',
      mask: mask ? renderMask(mask, call.slots) : '',
      extras: extras.tensor !== undefined,
      arena: arena !== undefined || chosen !== undefined,
      bits: arena?.bits?.words ?? 0,
    },
    uniforms: {
      one: 1,
      heads,
      kvHeads: sizes.kvHeads,
      group: heads / sizes.kvHeads,
      queries,
      keys,
      queryOffset: call.queryOffset ?? 0,
      ...visibility.band,
      scale,
      scale2: scale * log2e,
      qBatch,
      qRow,
      qHead,
      kBatch,
      kRow,
      kHead,
      vBatch,
      vRow,
      vHead,
      lengthsAt: at('lengths'),
      offsetsAt: at('offsets'),
      sinksAt: at('sinks'),
      biasAt: at('keyBias'),
      biasBatch: bias?.batch ?? 0,
      biasHead: bias?.head ?? 0,
      biasGroup: bias?.group ?? 1,
      blockQueries: call.selection?.blockQueries ?? 0,
      blockKeys: call.selection?.blockKeys ?? 0,
      listRows: chosen?.rows ?? (walk.transposed ? arena?.rows.transposed : arena?.rows.forward) ?? 0,
      listHeads: layout?.heads ?? arena?.heads ?? 1,
      listBatches: layout?.batches ?? arena?.batches ?? 1,
      listGroup: layout ? heads / layout.heads : 1,
      listWords: chosen?.words ?? 0,
      ...(chosen
        ? { rowsAt: chosen.rowsAt, runsAt: chosen.runsAt }
        : arena
          ? walk.transposed
            ? arena.transposed
            : arena.forward
          : { rowsAt: 0, runsAt: 0 }),
      bitTilesAt: arena?.bits?.tilesAt ?? 0,
      bitsAt: arena?.bits?.bitsAt ?? 0,
      ...slotValues(call, at, arena),
    },
  };
  if (arena?.bits?.pending) makeMaskBits(device, arena, walk, bound);
  return bound;
}

function slotValues(call: AttentionCall, at: (name: string) => number, arena: MaskArena | undefined): SlotUniforms {
  const { score, visibility } = call;
  const free = visibility.mask && freeNames(visibility.mask.predicate);
  const sources = { ...visibility.mask?.captures };
  const captures = call.slots.captures.map(({ name, buffer }) => {
    const own = name.slice(name.indexOf(' ') + 1);
    const source = name.startsWith('mask ') ? sources[own] : score?.captures[own];
    const size = source === undefined ? 1 : 'length' in source ? source.length : sizeOf(source.shape);
    return { at: buffer === 'arena' ? (arena?.captureAt[own] ?? 0) : at(name), size };
  });
  const values = [
    ...(score?.fn.uniforms ?? []).map(({ name, type }) => toBits(score?.uniforms[name] ?? 0, type)),
    ...(free?.uniforms ?? []).map(({ name, type }) => toBits(visibility.mask?.uniforms[name] ?? 0, type)),
  ];
  const half = (list: readonly number[], second: boolean): number[] => list.slice(second ? 8 : 0, second ? 16 : 8);
  const places = captures.map((c) => c.at);
  const sizes = captures.map((c) => c.size);
  return {
    captureAt0: half(places, false),
    captureAt1: half(places, true),
    captureLength0: half(sizes, false),
    captureLength1: half(sizes, true),
    values0: half(values, false),
    values1: half(values, true),
  };
}

type SlotUniforms = Pick<
  UniformsOf<ScoreUniforms>,
  'captureAt0' | 'captureAt1' | 'captureLength0' | 'captureLength1' | 'values0' | 'values1'
>;

function toBits(value: number, type: 'f32' | 'i32' | 'u32'): number {
  const view = new DataView(new ArrayBuffer(4));
  if (type === 'f32') view.setFloat32(0, value);
  else view.setInt32(0, value);
  return view.getUint32(0);
}

/** The table of a call whose rows lie in another order. */
function orderTable({ device, order }: AttentionCall): Operand | undefined {
  return order && constantTable(device, `${order.key} order`, () => order.order);
}

/** How kernels on fragments load rows. */
export function rowLoad(item: 1 | 4 | 8): RowLoad {
  return item === 8 ? 'half8' : item === 4 ? 'vec4' : 'scalar';
}

/** Whether a positive scale may be folded into the exponent, and what a hidden score is then written as. */
export function foldedScale({ spec, uniforms }: Bound, scale: number): { fold: boolean; hidden: number } {
  const fold = spec.score === '' && !spec.keyBias && scale > 0;
  return { fold, hidden: fold ? Math.max(-3e38, -1e30 / uniforms.scale2) : -1e30 };
}
