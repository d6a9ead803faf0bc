import type { DType } from '../dtype.js';
import type { Tensor } from '../tensor/tensor.js';
import type { KvGroupView, KvStage } from './kv-stage.js';
import type { State } from './mixer.js';

/** Options of `KvCache.attend`. Queries are the newest tokens; rows see keys as in `attention`. */
export interface AttendOptions {
  /** Factor on q.k. Default 1/sqrt(headDim). */
  scale?: number;
  /** A query sees keys up to its own position. Default true. */
  causal?: boolean;
  /** Last keys seen, the own one included. Default: all. */
  window?: number;
  /** Leading tokens that stay visible outside of the window. Default 0. */
  sinkTokens?: number;
  /** c in c tanh(s / c) on the scaled score. Default: none. */
  softcap?: number;
  /**
   * Which pages are read (top-k of pages, made on the device): u32 [batch, kvHeads, n], page p holds stored rows p pageTokens and on;
   * 0xffffffff is unused, and each page is named once. Default: all. What a group has dropped stays dropped, extra rows stay seen.
   */
  pages?: Tensor;
}

/** What comes along with appended rows, for stages that need it. */
export interface AppendContext {
  /** Queries of the same tokens, [batch, n, heads, headDim]. */
  q?: Tensor;
  /** Inputs of the layer, [batch, n, dim]. */
  hidden?: Tensor;
  /** Valid tokens a batch entry, i32 [batch]: the others of the n are padding at the end and are not stored. Default: all n. */
  lengths?: Tensor;
}

/** Settings of `createKvCache`. */
export interface KvCacheOptions {
  batch: number;
  kvHeads: number;
  headDim: number;
  /** Default: headDim. */
  valueDim?: number;
  /** Tokens that a sequence can hold. Buffers are made once, for all of them. */
  capacity: number;
  /** Of stored rows, `f32` or `f16`, where no codes stage says otherwise. */
  dtype: DType;
  /** At most one of each kind for a head group; neutral ones are left out. */
  stages?: readonly KvStage[];
  /** Tokens a page. Default 64. */
  pageTokens?: number;
}

/**
 * Keys and values of past tokens in pages [page, kvHead, slot, row], on the device. There is one, in core: techniques give it
 * stages and codecs.
 */
export interface KvCache extends State {
  /** Stored rows, i32 [batch, kvHeads]: heads may differ. */
  readonly lengths: Tensor;
  /** Batch entries in use: `select` may lower and raise it, up to the batch it was made with. */
  readonly batch: number;
  readonly capacity: number;
  /** How the head groups lie, for kernels of techniques that read stored rows: page scores, indices. */
  readonly views: readonly KvGroupView[];
  /** Tokens seen (a padded batch counts the padding). */
  readonly tokens: number;
  /**
   * Stores n further tokens in place: k [batch, n, kvHeads, headDim], v [batch, n, kvHeads, valueDim], f32 or f16.
   * @throws HeedError LIMIT_EXCEEDED when they do not fit, SHAPE_MISMATCH, DTYPE_MISMATCH, UNSUPPORTED when k or v is being differentiated
   */
  append(k: Tensor, v: Tensor, from?: AppendContext): void;
  /** What a placement stage must have on the device before `attend(q)`; resolved at once without one. */
  prepare(q: Tensor): Promise<void>;
  /**
   * Attention of the newest n tokens' queries q [batch, n, heads, headDim] over what is stored: [batch, n, heads, valueDim], dtype of q.
   * Rows that see nothing (padding) give zeros.
   * @throws HeedError UNSUPPORTED when n > 1 and a stage has dropped rows that the earlier of the queries must see
   */
  attend(q: Tensor, options?: AttendOptions): Tensor;
  /** As `attend`, with the natural logsumexp of each row's scores, f32 [batch, n, heads]; minus infinity where a row sees nothing. */
  attendWithLse(q: Tensor, options?: AttendOptions): { out: Tensor; lse: Tensor };
}
