// The seams of core against the 38 techniques that stand on them: compiled by the type check, never run. One entry a system: what
// its package will export (function, mixer, stream, stage), held against the seam that it plugs into. Options are those of the
// papers, under core's names.
import type {
  AttentionFn,
  AttentionOptions,
  AttentionWithLseFn,
  BlockSelection,
  BlockSelector,
  CarrySlot,
  KvCache,
  KvCacheOptions,
  KvCodec,
  KvCodesStage,
  KvElementsStage,
  KvHeadsStage,
  KvPlacementStage,
  KvRowsStage,
  KvTokensStage,
  Layer,
  ModelSurgery,
  Params,
  ScoreMod,
  State,
  Tensor,
  TokenMixer,
} from '../src/index.js';
import type { Mask } from '../src/attention/index.js';

/** `T`, which must fit the seam. */
type Fits<Seam, T extends Seam> = T;
type Weights<Names extends string> = { readonly [name in Names]: Tensor };
type Qkv = 'wq' | 'wk' | 'wv' | 'wo';
interface MixerConfig {
  dim: number;
  heads: number;
  kvHeads?: number;
  headDim?: number;
}

// ---- linear -----------------------------------------------------------------------------------------------------------------
interface LinearOptions {
  decay: Tensor | ArrayLike<number>;
  scale?: number;
  initialState?: Tensor;
  lengths?: Tensor;
}
/** A state [batch, heads, keyDim, valueDim]. */
interface LinearState extends State {
  readonly value: Tensor;
}
type MixerOf<C> = (config: C) => TokenMixer;
type LinearMixer<C extends MixerConfig, W extends string> = Fits<MixerOf<C>, (config: C) => TokenMixer<Weights<W>, LinearState>>;

export type Lightning = [
  Fits<AttentionFn<LinearOptions>, (q: Tensor, k: Tensor, v: Tensor, o: LinearOptions) => Tensor>,
  LinearMixer<MixerConfig & { layer: number; layers: number }, Qkv | 'gateDown' | 'gateUp' | 'norm'>,
];
export declare function lightning2(q: Tensor, k: Tensor, v: Tensor, options: LinearOptions & { chunk?: number }): Tensor;
export type Lightning2 = [Fits<AttentionFn<LinearOptions & { chunk?: number }>, typeof lightning2>, LinearMixer<MixerConfig, Qkv>];
export type Transnormer = [
  Fits<
    AttentionFn<{ causal?: boolean; activation?: 'elu' | 'relu' }>,
    (q: Tensor, k: Tensor, v: Tensor, o?: { causal?: boolean }) => Tensor
  >,
  Fits<AttentionFn<{ chunk: number; softmax?: boolean }>, (q: Tensor, k: Tensor, v: Tensor, o: { chunk: number }) => Tensor>,
  LinearMixer<MixerConfig & { kind: 'norm' | 'diag'; lrpe?: boolean }, Qkv | 'theta' | 'householder'>,
];
export type Transnormerllm = LinearMixer<MixerConfig & { lrpe?: boolean; normEps?: number }, 'qkvu' | 'wo' | 'theta'>;
export type Based = [
  Fits<AttentionFn<{ featureMap?: 'taylor2'; eps?: number }>, AttentionFn<{ featureMap?: 'taylor2'; eps?: number }>>,
  // linear, window and short-convolution layers are three mixers of one model; the window has core's cache
  Fits<TokenMixer, TokenMixer<Weights<Qkv>, LinearState & { readonly keySum: Tensor }>>,
  Fits<TokenMixer, TokenMixer<Weights<Qkv>, KvCache>>,
];
export type Nalaformer = [
  Fits<
    AttentionFn<{ lambda: number; tau: number; keyPower?: number }>,
    (q: Tensor, k: Tensor, v: Tensor, o: { lambda: number; tau: number }) => Tensor
  >,
  // images, both directions: a layer without a stream; the causal form has one
  Fits<Layer, Layer<Weights<'qkvg' | 'lepe' | 'wo'>>>,
  Fits<TokenMixer, TokenMixer<Weights<'qkvg' | 'wo'>, LinearState>>,
];
export type Nprf = Fits<
  AttentionFn<{ features: Tensor; bias: Tensor; causal?: boolean; featureMap?: 'prf' | 'trf' }>,
  (q: Tensor, k: Tensor, v: Tensor, o: { features: Tensor; bias: Tensor }) => Tensor
>;
export type Lla = [
  Fits<
    AttentionFn<{ ridgeLambda: Tensor; causal?: boolean; iterations?: number }>,
    (q: Tensor, k: Tensor, v: Tensor, o: { ridgeLambda: Tensor }) => Tensor
  >,
  Fits<TokenMixer, TokenMixer<Weights<Qkv | 'ridge'>, KvCache>>,
];
/** Weights of the inner network and their momentum, and the unfinished chunk. */
interface MemoryState extends State {
  readonly weights: readonly Tensor[];
  readonly momentum: readonly Tensor[];
}
export type Titans = [
  Fits<
    TokenMixer,
    TokenMixer<{ memory: readonly Tensor[]; projections: Weights<Qkv>; gates: Weights<'lr' | 'momentum' | 'decay'> }, MemoryState>
  >,
  // memory beside a window: two states in one
  Fits<TokenMixer, TokenMixer<{ memory: Params; attention: Params }, State & { readonly memory: MemoryState; readonly window: KvCache }>>,
];
interface Transformer {
  readonly layers: readonly TokenMixer[];
  readonly params: Params;
}
export type Lawcat = [
  Fits<
    TokenMixer,
    TokenMixer<Weights<Qkv | 'convQ' | 'convK' | 'featureQ' | 'gateDown' | 'gateUp'>, LinearState & { readonly convolution: Tensor }>
  >,
  Fits<ModelSurgery<Transformer, { tokens: AsyncIterable<Tensor>; steps: number }>, (model: Transformer) => Promise<Transformer>>,
];

// ---- sparse-local -----------------------------------------------------------------------------------------------------------
interface GridOptions {
  window: number | readonly number[];
  dilation?: number | readonly number[];
  causal?: boolean | readonly boolean[];
  bias?: Tensor;
  additionalKeys?: Tensor;
  additionalValues?: Tensor;
}
export type Fna = [
  Fits<AttentionFn<GridOptions>, (q: Tensor, k: Tensor, v: Tensor, o: GridOptions) => Tensor>,
  Fits<
    (config: MixerConfig & { window: number }) => TokenMixer,
    (config: MixerConfig & { window: number }) => TokenMixer<Weights<'qkv' | 'out'>, KvCache>
  >,
];
export type Gna = Fits<
  AttentionWithLseFn<GridOptions & { stride?: number | readonly number[] }>,
  AttentionWithLseFn<GridOptions & { stride?: number | readonly number[] }>
>;
/** Masks by closed form: what a model hands to `attention`. */
type MaskFor<O> = (options: O) => Pick<AttentionOptions, 'mask'> & { mask: Mask };
export type S2 = [
  Fits<
    MaskFor<{ blockSize: number; localBlocks: number; verticalStride: number; kvHeads: number; denseHeads?: number }>,
    MaskFor<{ blockSize: number; localBlocks: number; verticalStride: number; kvHeads: number; denseHeads?: number }>
  >,
  // tokens that no later query sees leave the cache: per head group
  Fits<KvHeadsStage, KvHeadsStage>,
];
export type Power = Fits<
  MaskFor<{ blockSize: number; windowBlocks: number }>,
  (o: { blockSize: number; windowBlocks: number }) => { mask: Mask }
>;
export type Radial = Fits<
  MaskFor<{ frames: number; tokensPerFrame: number; decayFactor: number }>,
  (o: { frames: number; tokensPerFrame: number; decayFactor: number }) => { mask: Mask }
>;

// ---- topk -------------------------------------------------------------------------------------------------------------------
interface ZetaLike {
  range: readonly [number, number];
  topK?: number;
  chunk?: number;
  localWindow?: number;
}
export declare function zeta(q: Tensor, k: Tensor, v: Tensor, options: ZetaLike & { theta: Tensor }): Tensor;
export type Zeta = [
  Fits<AttentionFn<ZetaLike & { theta: Tensor }>, typeof zeta>,
  Fits<TokenMixer, TokenMixer<Weights<Qkv | 'theta'>, State & { readonly runs: readonly Tensor[] }>>,
];
export type Hyper = Fits<
  AttentionWithLseFn<{ seed: number; blockSize?: number; samples?: number; causal?: boolean }>,
  (q: Tensor, k: Tensor, v: Tensor, o: { seed: number }) => { out: Tensor; lse: Tensor }
>;
/** A part by merge: static rows over the cache, retrieved ones beside it. */
type MergedPart = (cache: KvCache, q: Tensor) => { out: Tensor; lse: Tensor };
export type Retrieval = [
  Fits<MergedPart, (cache: KvCache, q: Tensor) => ReturnType<KvCache['attendWithLse']>>,
  Fits<KvPlacementStage, KvPlacementStage & { readonly index: 'graph' | 'flat' }>,
];
export type Sale = Fits<
  BlockSelector<{ thresholds: Tensor; blockSize?: number; localWindow?: number }>,
  (q: Tensor, k: Tensor, o: { thresholds: Tensor }) => BlockSelection
>;
export type Sea = [
  Fits<
    TokenMixer,
    TokenMixer<Weights<'projection' | 'encoder' | 'rows' | 'scale'>, State & { readonly sums: Tensor; readonly lastRows: Tensor }>
  >,
  Fits<BlockSelector<{ weights: Params; topK: number }>, (q: Tensor, k: Tensor, o: { weights: Params; topK: number }) => BlockSelection>,
];
export type Landmark = [
  Fits<AttentionFn<{ blockSize: number; causal?: boolean }>, (q: Tensor, k: Tensor, v: Tensor, o: { blockSize: number }) => Tensor>,
  // decode: pages by landmark, in a cache of keys before rotation
  Fits<BlockSelector<{ cache: KvCache; topK: number }, Tensor>, (q: Tensor, k: Tensor, o: { cache: KvCache; topK: number }) => Tensor>,
];
/** Pages that one layer chose, u32 [batch, kvHeads, n], for the layers behind it. */
export declare const chosenPages: CarrySlot<Tensor>;
export type Delta = [
  Fits<CarrySlot<Tensor>, typeof chosenPages>,
  Fits<NonNullable<Parameters<KvCache['attend']>[1]>, { pages: Tensor; scale: number }>,
  Fits<TokenMixer, TokenMixer<Weights<Qkv>, KvCache>>,
];

// ---- kv ---------------------------------------------------------------------------------------------------------------------
export type Razor = [
  Fits<NonNullable<KvCacheOptions['stages']>, readonly [KvHeadsStage, KvTokensStage, KvRowsStage]>,
  Fits<
    ModelSurgery<Transformer, { period: number; repeats: number; inductionRatio: number; echoRatio: number }, Tensor>,
    (model: Transformer) => Promise<Tensor>
  >,
];
export type Duo = [
  Fits<NonNullable<KvCacheOptions['stages']>, readonly [KvHeadsStage, KvTokensStage]>,
  // gates are learnt by a mixer that mixes both streams; its loss is an aux
  Fits<ModelSurgery<Transformer, { tokens: AsyncIterable<Tensor>; sparsity: number }>, (model: Transformer) => Promise<Transformer>>,
];
export type Mustafar = [
  Fits<KvElementsStage, KvElementsStage & { readonly keySparsity: number; readonly valueSparsity: number }>,
  // a fixed number of kept elements a row: bitmap and values
  Fits<KvCodesStage, { kind: 'codes'; name: string; neutral: boolean; settings: { sparsity: number }; keys: KvCodec; values: KvCodec }>,
];
export type Cca = Fits<
  TokenMixer,
  TokenMixer<
    Weights<Qkv | 'convDepth' | 'convHead' | 'temperature'>,
    State & { readonly cache: KvCache; readonly convolution: Tensor; readonly previousValue: Tensor }
  >
>;
export type Nosa = [
  Fits<
    BlockSelector<{ cis: Tensor; topBlocks: number; localBlocks?: number }>,
    (q: Tensor, k: Tensor, o: { cis: Tensor; topBlocks: number }) => BlockSelection
  >,
  Fits<KvPlacementStage, KvPlacementStage & { readonly slots: number }>,
];
export type DeltaLlm = [
  Fits<
    AttentionFn<{ window: number; threshold: number; sinks?: number }>,
    (q: Tensor, k: Tensor, v: Tensor, o: { window: number; threshold: number }) => Tensor
  >,
  // a row depends on the one before: the reference row is the stage's state
  Fits<KvElementsStage, KvElementsStage & { start: NonNullable<KvElementsStage['start']>; readonly threshold: number }>,
];

// ---- vision -----------------------------------------------------------------------------------------------------------------
/** Batch norms give their new running statistics as aux. */
type ImageLayer<W extends string> = Layer<Weights<W>>;
export type Van = [
  Fits<Layer, ImageLayer<'conv0' | 'convSpatial' | 'conv1'>>,
  Fits<Layer, Layer<{ norm: Weights<'scale' | 'shift' | 'mean' | 'variance'>; attention: Params; mlp: Params }>>,
];
export type Bevanet = [
  Fits<Layer, Layer<{ kernelSelection: Params; norm: Params }>>,
  Fits<(detail: Tensor, semantic: Tensor, boundary: Tensor) => Tensor, (detail: Tensor, semantic: Tensor, boundary: Tensor) => Tensor>,
];
export type Essaformer = [
  Fits<AttentionFn<{ eps?: number; order?: 1 | 2 }>, (q: Tensor, k: Tensor, v: Tensor, o?: { eps?: number }) => Tensor>,
  Fits<Layer, ImageLayer<'lnqkv' | 'ln' | 'convUp' | 'convDown'>>,
];
export type Karat = [
  Fits<
    AttentionFn<{ a: Tensor; b: Tensor; w?: Tensor; base?: 'zero' | 'identity' | 'silu' | 'gelu' }>,
    (q: Tensor, k: Tensor, v: Tensor, o: { a: Tensor; b: Tensor }) => Tensor
  >,
  Fits<Layer, ImageLayer<Qkv | 'a' | 'b' | 'w'>>,
];
/** Not a layer: a score of documents; patches are pruned by attention's column sums. */
export type HpcColpali = [
  (query: Tensor, docs: Tensor, options: { lengths: Tensor }) => Tensor,
  Fits<(columnSums: Tensor, keep: number) => Tensor, (columnSums: Tensor, keep: number) => Tensor>,
];

// ---- pruning ----------------------------------------------------------------------------------------------------------------
/** Tokens and heads that are still alive in a cascade, and what importance they have gathered. */
export declare const alive: CarrySlot<{ tokens: Tensor; tokenImportance: Tensor; heads: Tensor; headImportance: Tensor }>;
export type Spatten = [
  Fits<CarrySlot<{ tokens: Tensor }>, typeof alive>,
  Fits<TokenMixer, TokenMixer<Weights<Qkv>, KvCache>>,
  // high bits first, low bits where the first pass is in doubt
  Fits<KvCodec, KvCodec & { readonly planes: readonly [msb: number, lsb: number] }>,
];
export type Vtrans = [
  Fits<Layer, Layer<{ inner: Params; mask: Weights<'mu' | 'logVariance'> }>>,
  Fits<ModelSurgery<Transformer, { masks: Params; threshold: number }>, (model: Transformer) => Transformer>,
];
export type Moh = [
  Fits<TokenMixer, TokenMixer<Weights<'qkv' | 'out' | 'routed' | 'shared' | 'alpha'>, KvCache>>,
  Fits<Layer, Layer<Weights<'qkv' | 'out' | 'routed'>>>,
];
export type Ssa = [
  Fits<
    AttentionFn<{ queryScale?: Tensor; valueScale?: Tensor; causal?: boolean }>,
    (q: Tensor, k: Tensor, v: Tensor, o?: { queryScale?: Tensor }) => Tensor
  >,
  Fits<NonNullable<AttentionOptions['scoreMod']>, ScoreMod>,
];

// ---- the benchmark ----------------------------------------------------------------------------------------------------------
/** LongCA-bench runs any attention function under any of its masks. */
export type LongContextBench = Fits<
  (run: AttentionFn, mask: Mask, lengths: readonly number[]) => Promise<readonly { tokens: number; ms: number }[]>,
  (run: AttentionFn, mask: Mask) => Promise<{ tokens: number; ms: number }[]>
>;

/** Every system of the house's plan has an entry. */
export interface Systems {
  linear: [Lightning, Lightning2, Transnormer, Transnormerllm, Based, Nalaformer, Nprf, Lla, Titans, Lawcat];
  sparseLocal: [Fna, Gna, S2, Power, Radial];
  topk: [Zeta, Hyper, Retrieval, Sale, Sea, Landmark, Delta];
  kv: [Razor, Duo, Mustafar, Cca, Nosa, DeltaLlm];
  vision: [Van, Bevanet, Essaformer, Karat, HpcColpali];
  pruning: [Spatten, Vtrans, Moh, Ssa];
  bench: [LongContextBench];
}
type Count = [
  ...Systems['linear'],
  ...Systems['sparseLocal'],
  ...Systems['topk'],
  ...Systems['kv'],
  ...Systems['vision'],
  ...Systems['pruning'],
  ...Systems['bench'],
]['length'];
export type ThirtyEight = Fits<38, Count>;

// What the seams must refuse.
export type Refused = [
  // @ts-expect-error required options may not be left out
  Fits<AttentionFn, typeof zeta>,
  // @ts-expect-error a layer without a stream is no token mixer
  Fits<TokenMixer, Layer>,
  // @ts-expect-error a stage has one of the six kinds
  Fits<NonNullable<KvCacheOptions['stages']>[number], { kind: 'window'; name: string; neutral: boolean; settings: Record<string, number> }>,
  // @ts-expect-error a state that cannot roll back is none
  Fits<State, Omit<LinearState, 'truncate'>>,
];
