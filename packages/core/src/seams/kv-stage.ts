import type { Device } from '../device/device.js';
import type { Tensor } from '../tensor/tensor.js';
import type { KvCodec } from './kv-codec.js';
import type { State } from './mixer.js';

/** In the order in which they act on a row: who stores it, whether it stays, what it becomes, how and where it lies. */
export const kvStageKinds = ['heads', 'tokens', 'rows', 'elements', 'codes', 'placement'] as const;
export type KvStageKind = (typeof kvStageKinds)[number];

/** What a stage must be given: with `append` (queries, hidden states). A cache refuses an append without it. */
export type KvNeed = 'q' | 'hidden';

interface StageBase {
  readonly name: string;
  /** True when this setting changes nothing: the cache then leaves the stage out and equals a dense one. */
  readonly neutral: boolean;
  /** The head group that it acts on, as the heads stage names them. Default: every group. */
  readonly group?: string;
  readonly needs?: readonly KvNeed[];
  /** All settings, for the manifest of snapshots. */
  readonly settings: Readonly<Record<string, string | number | boolean | readonly number[]>>;
}

/** KV heads that are stored alike, with what stages say of them. */
export interface KvHeadGroup {
  name: string;
  /** KV heads, ascending. */
  heads: readonly number[];
}

/** Splits the KV heads into groups; every head is in one. */
export interface KvHeadsStage extends StageBase {
  readonly kind: 'heads';
  groups(kvHeads: number): readonly KvHeadGroup[];
}

/** Which rows stay: the first `sinks` and the last `recent`, in a ring. */
export interface KvTokensStage extends StageBase {
  readonly kind: 'tokens';
  readonly sinks: number;
  readonly recent: number;
}

/** How one head group lies in memory: what stages read and write by kernels of their own. */
export interface KvGroupView {
  readonly device: Device;
  /** Of the group, in messages. */
  readonly name: string;
  /** KV heads of the group. */
  readonly heads: readonly number[];
  /** Batch entries that there is room for. */
  readonly batch: number;
  /** KV heads of the whole cache. */
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** Rows a page. */
  readonly pageTokens: number;
  /** Pages of a sequence. */
  readonly pages: number;
  /** Rows that stay: sinks and ring, or the capacity. */
  readonly rows: number;
  /** Leading rows that stay in front of the ring. */
  readonly sinks: number;
  /** Length of the ring; 0 where every row stays. */
  readonly recent: number;
  /** Pools u32: row `slot` of head i (in the group) on a page begins at item ((page * heads + i) * pageTokens + slot) * rowItems. */
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly keyCodec: KvCodec;
  readonly valueCodec: KvCodec;
  /** u32: the group's heads, then the page table [batch, pages]. */
  readonly index: Tensor;
  /** i32: tokens seen [batch], tokens of the last append [batch], stored rows [batch, kvHeads]. */
  readonly counts: Tensor;
}

/** Rows that are about to be overwritten by the tokens that come in. */
export interface KvLeavingRows {
  /** Tokens that come in for each sequence; at most the ring's length. */
  readonly tokens: number;
  /** Batch entries in use. */
  readonly batch: number;
  /** Where entries differ: those of this call that are valid, i32 [batch], of which `offset` came in before. */
  readonly lengths?: Tensor | undefined;
  readonly offset: number;
}

/**
 * What becomes of rows that leave: merged into further rows that every query sees with a bias. It keeps them as
 * f32 [batch, heads of the group, extraRows, 4 + 4 ceil(headDim / 4) + 4 ceil(valueDim / 4)]: the bias, three numbers for itself (they
 * begin as 0), the key, the value, both padded with zeros. A bias of -1e30 hides a row; all begin hidden.
 */
export interface KvRowsStage extends StageBase {
  readonly kind: 'rows';
  readonly extraRows: number;
  /** Folds the rows in that the next append overwrites. Called before they are, with room for the state. */
  leave(view: KvGroupView, extra: Tensor, leaving: KvLeavingRows): void;
}

/** What an elements stage changes in rows before they are coded: pruned elements, deltas. Shapes and dtypes stay. */
export interface KvElementsStage extends StageBase {
  readonly kind: 'elements';
  /** What it keeps from row to row, where rows depend on earlier ones; one a cache. Rolled back, snapshot and freed with the cache. */
  start?(view: KvGroupView): State;
  apply(rows: { k: Tensor; v: Tensor }, from: { q?: Tensor; hidden?: Tensor }, state: State | undefined): { k: Tensor; v: Tensor };
}

/** In which form rows lie. */
export interface KvCodesStage extends StageBase {
  readonly kind: 'codes';
  readonly keys: KvCodec;
  readonly values: KvCodec;
}

/** Where pages lie: moves them between device slots and the host before `attend`, and remaps the page table. */
export interface KvPlacementStage extends StageBase {
  readonly kind: 'placement';
  start(view: KvGroupView): KvPlacement;
}

/** The state of a placement stage; `bytes().host` is what it holds on the host. */
export interface KvPlacement extends State {
  /** Resolves when the rows that q will read are on the device. */
  prepare(q: Tensor): Promise<void>;
}

/** One step of what happens to stored rows. One of a kind for a head group; they act in the order of `kvStageKinds`. */
export type KvStage = KvHeadsStage | KvTokensStage | KvRowsStage | KvElementsStage | KvCodesStage | KvPlacementStage;
