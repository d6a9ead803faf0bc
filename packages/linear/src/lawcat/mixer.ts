import {
  type Device,
  type DType,
  HeedError,
  type MixContext,
  type Params,
  type RandomStream,
  reshape,
  scope,
  split,
  tensor,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { type LawcatBranch, type LawcatBranchOptions, lawcatMix } from './layer.js';
import { type LawcatState, lawcatStart, lawcatStep } from './stream.js';

/** Settings of a LAWCAT layer. */
export interface LawcatMixerConfig {
  dim: number;
  heads: number;
  /** Heads of keys and values; divides heads. Default: heads. */
  kvHeads?: number;
  /** Even. Default: dim / heads. */
  headDim?: number;
  /** Taps of the convolutions. Default 4. */
  taps?: number;
  /** Rank of the gate; 0: full. Default 16. */
  gateRank?: number;
  /** One feature map for queries and keys. Default true. */
  tieFeatureMaps?: boolean;
  /** Filters of keys are those of queries. Default false. */
  tieFilters?: boolean;
  /** Behind the convolutions. Default `none`. */
  activation?: 'none' | 'silu';
  /** Default 16. */
  gateNormalizer?: number;
  /** Keys of a softmax window. Default 0: none. */
  window?: number;
  /** Default false. */
  affine?: boolean;
  /** Rotary positions in the window; `base` default 10,000. Default: none. */
  rope?: { base?: number };
  /** `f16`: operands of products in f16 where the device has it; features, gates and states stay f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer; `qkv` and `out` are those of a softmax layer, so that a teacher's can take their place. */
export interface LawcatMixerParams {
  [name: string]: Params;
  /** [dim, (heads + 2 kvHeads) headDim] */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
  /** [heads headDim, taps]; `convK` beside it unless tied. */
  convQ: Tensor;
  /** [heads, headDim, headDim / 2]; `featureK` beside it unless tied. */
  featureQ: Tensor;
  /** [gateRank or dim, kvHeads headDim] and bias; `gateDown` [dim, gateRank] beside it for a low rank. */
  gateUp: LinearParams;
}

/**
 * The new parameters of a layer as they start (section 3.3 and the released code): filters that pass the current token, feature
 * maps of the identity, gates of 0.9576 a token, window factors of a half.
 */
export function initLawcat(device: Device, random: RandomStream, config: LawcatMixerConfig): Omit<LawcatMixerParams, 'qkv' | 'out'> {
  const { dim, heads, kvHeads, headDim, taps, gateRank, window, tieFeatureMaps, tieFilters } = resolve(config);
  const filter = (): Tensor =>
    tensor(
      device,
      Float32Array.from({ length: heads * headDim * taps }, (_, i) => (i % taps === taps - 1 ? 1 : 0.001)),
      [heads * headDim, taps],
    );
  const features = headDim / 2;
  const eye = (): Tensor =>
    tensor(
      device,
      Float32Array.from({ length: heads * headDim * features }, (_, i) => (Math.floor(i / features) % headDim === i % features ? 1 : 0)),
      [heads, headDim, features],
    );
  return {
    convQ: filter(),
    ...(!tieFilters && { convK: filter() }),
    featureQ: eye(),
    ...(!tieFeatureMaps && { featureK: eye() }),
    ...(gateRank > 0 && { gateDown: initLinear(device, random.stream('gateDown'), { inputs: dim, outputs: gateRank, std: 0.006 }) }),
    gateUp: initLinear(device, random.stream('gateUp'), {
      inputs: gateRank > 0 ? gateRank : dim,
      outputs: kvHeads * headDim,
      std: 0.006,
      bias: true,
    }),
    ...(window > 0 && { windowFactor: zeros(device, [heads]) }),
  } as Omit<LawcatMixerParams, 'qkv' | 'out'>;
}

type Resolved = Required<
  Pick<
    LawcatMixerConfig,
    'dim' | 'heads' | 'kvHeads' | 'headDim' | 'taps' | 'gateRank' | 'window' | 'tieFeatureMaps' | 'tieFilters' | 'precision'
  >
>;

function resolve(config: LawcatMixerConfig): Resolved {
  const {
    dim,
    heads,
    kvHeads = heads,
    taps = 4,
    gateRank = 16,
    window = 0,
    tieFeatureMaps = true,
    tieFilters = false,
    precision = 'f32',
  } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `lawcatMixer: dim ${dim} and heads ${heads} give head dimension ${headDim}; it must be an even number`,
    );
  if (heads % kvHeads !== 0) throw new HeedError('SHAPE_MISMATCH', `lawcatMixer: kvHeads ${kvHeads} does not divide heads ${heads}`);
  if (!Number.isInteger(taps) || taps < 1 || !Number.isInteger(gateRank) || gateRank < 0)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lawcatMixer: taps ${taps} and gateRank ${gateRank}; they are whole numbers of at least 1 and 0`,
    );
  return { dim, heads, kvHeads, headDim, taps, gateRank, window, tieFeatureMaps, tieFilters, precision };
}

/**
 * LAWCAT as a token mixer: convolution over tokens on queries and keys, softmax feature map, normalised gated linear attention. Made
 * to take the place of a softmax layer: its projections have the same names and shapes.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function lawcatMixer(config: LawcatMixerConfig): TokenMixer<LawcatMixerParams, LawcatState> {
  const resolved = resolve(config);
  const { dim, heads, kvHeads, headDim, taps, window, precision } = resolved;
  const { activation, gateNormalizer, affine } = config;
  const options: LawcatBranchOptions = {
    window,
    precision,
    ...(activation && { activation }),
    ...(gateNormalizer !== undefined && { gateNormalizer }),
    ...(affine !== undefined && { affine }),
    ...(config.rope && { rope: config.rope }),
  };

  function project(params: LawcatMixerParams, x: Tensor): [Tensor, Tensor, Tensor, Tensor] {
    const [batch, tokens] = [x.dim(0), x.dim(1)];
    const product = { precision, outDType: 'f32' } as const;
    const fused = reshape(linear(params.qkv, x, product), [batch, tokens, heads + 2 * kvHeads, headDim]);
    const [q, k, v] = split(fused, [heads, kvHeads, kvHeads], 2) as [Tensor, Tensor, Tensor];
    const down = params['gateDown'] as LinearParams | undefined;
    // gates are f32 throughout: their logs add up over the whole sequence
    const logits = linear(params.gateUp, down ? linear(down, x) : x);
    return [q, k, v, reshape(logits, [batch, tokens, kvHeads, headDim])];
  }

  const finish = (params: LawcatMixerParams, o: Tensor): Tensor =>
    linear(params.out, reshape(o, [o.dim(0), o.dim(1), heads * headDim]), { precision, outDType: 'f32' });

  return {
    name: 'lawcat',
    init: (device: Device, random: RandomStream): LawcatMixerParams =>
      ({
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: (heads + 2 * kvHeads) * headDim }),
        out: initLinear(device, random.stream('out'), { inputs: heads * headDim, outputs: dim, std: 1 / Math.sqrt(heads * headDim * 8) }),
        ...initLawcat(device, random, config),
      }) as LawcatMixerParams,
    apply: (params: LawcatMixerParams, x: Tensor, _context: MixContext): { out: Tensor; aux: Record<string, Tensor> } =>
      scope(() => {
        const [q, k, v, gate] = project(params, x);
        const o = lawcatMix(q, k, v, gate, branchOf(params), options);
        return { out: finish(params, o), aux: { attention: o } };
      }),
    start: (device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): LawcatState =>
      lawcatStart(device, { batch, heads, headDim, taps, window }),
    step: (params: LawcatMixerParams, x: Tensor, state: LawcatState): Tensor =>
      scope(() => {
        const [q, k, v, gate] = project(params, x);
        return finish(params, lawcatStep(q, k, v, gate, branchOf(params), state, options));
      }),
  };
}

/** The branch among the parameters of a layer. */
function branchOf(params: LawcatMixerParams): LawcatBranch {
  return {
    convQ: params.convQ,
    convK: params['convK'] as Tensor | undefined,
    featureQ: params.featureQ,
    featureK: params['featureK'] as Tensor | undefined,
    windowFactor: params['windowFactor'] as Tensor | undefined,
  };
}
