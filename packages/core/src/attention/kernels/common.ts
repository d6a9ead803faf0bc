// What the attention kernels share beside the register tile: what varies (spec), run-time values, and the functions of a
// score's place: lengths, query positions, score function, mask, key bias.
import type { UniformType, UniformValue } from '../../kernel/uniforms.js';

/**
 * How the visible key tiles of a query tile are known.
 * - `band`: closed form, q - left <= kv <= q + right, or kv < prefix (and kv <= q + right); dense, causal, windows
 * - `runs`: intervals of tiles in the arena
 * - `ids`: rows of key-block ids made on the device
 * - `bits`: rows of bit words made on the device
 */
export type ListKind = 'band' | 'runs' | 'ids' | 'bits';

/** What the text of an attention kernel depends on beside its tile. */
export type ScoreSpec = {
  headDim: number;
  valueDim: number;
  /** Rows are loaded as vec4: head dimensions, strides and offsets are multiples of 4. */
  vector: boolean;
  list: ListKind;
  /** Rows of ids end at a count of their own. */
  counted: boolean;
  /** Query heads a KV head whose rows share a tile: rows are (query, head of the group) pairs. 0: rows are queries. */
  packed: number;
  lengths: boolean;
  /** The query offset differs by batch entry. */
  offsets: boolean;
  keyBias: boolean;
  sinks: boolean;
  /** Loop bounds are hidden from the compiler: software drivers unroll them at a great cost. */
  opaque: boolean;
  /** WGSL of `scoreOf` and `slopeOf`; empty where scores stay as they are. */
  score: string;
  /** WGSL of `maskOf`; empty where the list says all. */
  mask: string;
  /** The `extras` buffer is bound: lengths, offsets, sinks, biases, captured arrays. */
  extras: boolean;
  /** The `arena` buffer is bound: runs or block ids. */
  arena: boolean;
  /** Words a row of a partial tile whose visibility lies in the arena as bits; 0: the predicate is asked pair by pair. */
  bits: number;
};

/** Run-time values of every attention kernel that are u32. */
const words = [
  // 1; loop bounds are hidden behind it
  'one',
  'heads',
  'kvHeads',
  // query heads a KV head
  'group',
  'queries',
  'keys',
  // leading keys that the band's left edge does not hide
  'prefix',
  // strides in items of the bindings
  'qBatch',
  'qRow',
  'qHead',
  'kBatch',
  'kRow',
  'kHead',
  'vBatch',
  'vRow',
  'vHead',
  // first words of small arrays in `extras`, strides of the key bias, and query heads that share a row of it
  'lengthsAt',
  'offsetsAt',
  'sinksAt',
  'biasAt',
  'biasBatch',
  'biasHead',
  'biasGroup',
  // sizes of the blocks of a selection, in tokens
  'blockQueries',
  'blockKeys',
  // rows a head of the list; heads and batch entries that it stores; query heads that share a row; words a row of a selection
  'listRows',
  'listHeads',
  'listBatches',
  'listGroup',
  'listWords',
  // where the list lies in the arena: counts of a selection or the row table of runs, and ids, bits or runs
  'rowsAt',
  'runsAt',
  // bits of partial tiles: for each run the number of its tile 0, and the words
  'bitTilesAt',
  'bitsAt',
] as const;
const offsets = ['queryOffset', 'left', 'right'] as const;
// `scale2` is scale times log2 e
const factors = ['scale', 'scale2'] as const;
// slots of captured arrays (first word, length) and of uniforms (bits) of score function and mask
const slotLists = ['captureAt0', 'captureAt1', 'captureLength0', 'captureLength1', 'values0', 'values1'] as const;

/** Run-time values of every attention kernel. */
export type ScoreUniforms = Readonly<
  Record<(typeof words)[number], 'u32'> &
    Record<(typeof offsets)[number], 'i32'> &
    Record<(typeof factors)[number], 'f32'> &
    Record<(typeof slotLists)[number], 'u32x8'>
>;

function typed<N extends string, T extends UniformType>(names: readonly N[], type: T): Record<N, T> {
  return Object.fromEntries(names.map((name) => [name, type])) as Record<N, T>;
}

export const scoreUniforms: ScoreUniforms = /* @__PURE__ */ (() => ({
  ...typed(words, 'u32'),
  ...typed(offsets, 'i32'),
  ...typed(factors, 'f32'),
  ...typed(slotLists, 'u32x8'),
}))();

export type UniformsOf<U extends Readonly<Record<string, UniformType>>> = { readonly [K in keyof U]: UniformValue<U[K]> };

export const log2e: number = Math.LOG2E;
export const ln2: number = Math.LN2;

/** Functions of a score's place. */
export function scoreFunctions(spec: ScoreSpec): string {
  return `
    fn listRowOf(b: u32, h: u32, tile: u32) -> u32 {
      return (min(b, uniforms.listBatches - 1u) * uniforms.listHeads + min(h / uniforms.listGroup, uniforms.listHeads - 1u)) * uniforms.listRows + tile;
    }
    ${spec.score}
    ${spec.mask}
    fn keyEndOf(b: u32) -> u32 {
      ${spec.lengths ? 'return min(uniforms.keys, u32(max(bitcast<i32>(extras[base_extras() + uniforms.lengthsAt + b]), 0i)));' : 'return uniforms.keys;'}
    }
    fn queryOffsetOf(b: u32) -> i32 {
      ${spec.offsets ? 'return bitcast<i32>(extras[base_extras() + uniforms.offsetsAt + b]);' : 'return uniforms.queryOffset;'}
    }
    ${
      spec.keyBias
        ? `fn keyBiasOf(b: u32, h: u32, kv: u32) -> f32 {
      return bitcast<f32>(extras[base_extras() + uniforms.biasAt + b * uniforms.biasBatch + h / uniforms.biasGroup * uniforms.biasHead + min(kv, uniforms.keys - 1u)]);
    }`
        : ''
    }
    fn seen(b: u32, h: u32, q: i32, kv: u32, keyEnd: u32) -> bool {
      if (kv >= keyEnd) { return false; }
      ${spec.list !== 'runs' ? `let key = i32(kv); if (key > q + uniforms.right || (key < q - uniforms.left && kv >= uniforms.prefix)) { return false; }` : ''}
      ${spec.mask === '' ? 'return true;' : 'return maskOf(i32(b), i32(h), q, i32(kv));'}
    }`;
}

/** Where a pair stands: WGSL names. */
export interface PairPlace {
  b: string;
  h: string;
  q: string;
  kv: string;
}

/** Logit in base 2 of a raw score `s`, biases included (`bias`: the key's, in natural units), before masking. */
export function logitText(spec: ScoreSpec, s: string, place: PairPlace, bias: string): string {
  const value = spec.score === '' ? `${s} * uniforms.scale2` : `scoreOf(${scoreArguments(s, place)}) * ${log2e}`;
  return spec.keyBias ? `${value} + ${bias} * ${log2e}` : value;
}

/** d (final score) / d (scaled score) at a raw score; undefined where it is 1. */
export function slopeText(spec: ScoreSpec, s: string, place: PairPlace): string | undefined {
  return spec.score === '' ? undefined : `slopeOf(${scoreArguments(s, place)})`;
}

function scoreArguments(s: string, { b, h, q, kv }: PairPlace): string {
  return `${s} * uniforms.scale, i32(${b}), i32(${h}), ${q}, i32(min(${kv}, uniforms.keys - 1u))`;
}
