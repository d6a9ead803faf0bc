import { type Device, HeedError, type Params, type RandomStream, tensor, type Tensor, zeros } from '@heed/core';
import { full } from '@heed/core';
import { truncatedNormal } from '@heed/core/nn';
import type { TitansLayerOptions, TitansLayerParams } from './layer.js';
import type { TitansForm } from './options.js';

/** Settings of a memory as a token mixer. */
export interface TitansMixerConfig extends Omit<TitansForm, 'transition' | 'chunkSize'> {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Tokens a chunk. Default 64. */
  chunkSize?: number;
  /** Layers of the memory. Default 2; 1 is a matrix. */
  depth?: number;
  /** Width between its layers, in head dimensions. Default 4. */
  expansion?: number;
  /** Layer norm with gain and residual around the memory's network. Default true. */
  residualNorm?: boolean;
  /** Orders of momentum; 0: none. Default 1. */
  orders?: number;
  /** Factor on the sigmoid of a token's step. Default 1. */
  maxRate?: number;
  /** On queries and keys a head, with gains: without a norm steps diverge. Default `rms`; `l2` is the paper's. */
  qkNorm?: 'rms' | 'l2' | 'none';
  /** Behind the projections of q, k and v. Default `none`; `silu` is the paper's. */
  projectionActivation?: 'none' | 'silu';
  /** RMS norm with gain a head on what was retrieved. Default false. */
  outNorm?: boolean;
  /**
   * Taps of causal depthwise convolutions behind the projections of q, k and v, as in the paper: the memory itself knows no order.
   * 1: none. Default 4 for the memory alone, 1 beside attention, whose positions tell the order.
   */
  shortConv?: number;
  /** Starts of the biases behind step, momentum and forgetting. Default 0, 0 and -3: 5 % of the memory goes a chunk. */
  rateBias?: number;
  momentumBias?: number;
  forgetBias?: number;
}

/** Parameters of a memory: those of `titansLayer`, by name; optional ones only where they are used. */
export interface TitansMixerParams {
  [name: string]: Params;
  /** Gains of the norms in front of what is stored and what is asked, [dim]. */
  storeNorm: Tensor;
  retrieveNorm: Tensor;
  /** [heads headDim, dim] */
  wq: Tensor;
  wk: Tensor;
  wv: Tensor;
  /** Step of each token, [heads, dim] and [heads]. */
  wRate: Tensor;
  bRate: Tensor;
  /** Share of the memory that goes, a chunk. */
  wForget: Tensor;
  bForget: Tensor;
  /** Output projection. */
  wOut: Tensor;
  /** Weights of the memory at the start of every sequence, [heads, inputs, outputs]. */
  memory: Tensor[];
}

/** A configuration with its defaults. */
export type Resolved = Required<
  Pick<
    TitansMixerConfig,
    'dim' | 'heads' | 'headDim' | 'depth' | 'expansion' | 'residualNorm' | 'orders' | 'qkNorm' | 'outNorm' | 'shortConv'
  >
> & {
  config: TitansMixerConfig;
  options: TitansLayerOptions;
};

/**
 * @param taps default of `shortConv`
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function resolveTitans(who: string, config: TitansMixerConfig, taps = 1): Resolved {
  const { dim, heads, depth = 2, expansion = 4, residualNorm = true, orders = 1, qkNorm = 'rms', outNorm = false } = config;
  const { shortConv = taps } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `${who}: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (
    !Number.isInteger(depth) ||
    depth < 1 ||
    !Number.isInteger(expansion * headDim) ||
    expansion <= 0 ||
    !Number.isInteger(orders) ||
    orders < 0
  )
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: depth ${depth}, expansion ${expansion} and ${orders} orders of momentum; depth is 1 or more, expansion a width of whole channels, orders 0 or more`,
    );
  if (!Number.isInteger(shortConv) || shortConv < 1)
    throw new HeedError('INVALID_ARGUMENT', `${who}: shortConv is ${shortConv}; it must be an integer of 1 (none) or more`);
  const {
    chunkSize = 64,
    gradientPeriod,
    activation,
    lossReduction,
    lnEpsilon,
    gradientClamp,
    orthogonalize,
    inFlight,
    recompute,
    precision,
  } = config;
  const options: TitansLayerOptions = {
    heads,
    chunkSize,
    maxRate: config.maxRate ?? 1,
    qkNorm,
    ...(config.projectionActivation && { projectionActivation: config.projectionActivation }),
    ...(gradientPeriod !== undefined && { gradientPeriod }),
    ...(activation && { activation }),
    ...(lossReduction && { lossReduction }),
    ...(lnEpsilon !== undefined && { lnEpsilon }),
    ...(gradientClamp !== undefined && { gradientClamp }),
    ...(orthogonalize !== undefined && { orthogonalize }),
    ...(inFlight !== undefined && { inFlight }),
    ...(recompute !== undefined && { recompute }),
    ...(precision && { precision }),
  };
  return { config, dim, heads, headDim, depth, expansion, residualNorm, orders, qkNorm, outNorm, shortConv, options };
}

/** First parameters: normal projections, Xavier memories, gains of 0 around 1. */
export function initTitans(device: Device, random: RandomStream, resolved: Resolved): TitansMixerParams {
  const { config, dim, heads, headDim, depth, expansion, orders, shortConv } = resolved;
  const width = heads * headDim;
  const matrix = (name: string, rows: number, columns: number, std = 1 / Math.sqrt(columns)): Tensor =>
    truncatedNormal(device, random.stream(name), [rows, columns], std);
  const widths = [headDim, ...Array.from({ length: depth - 1 }, () => expansion * headDim), headDim];
  const memory = widths.slice(1).map((outputs, i) => {
    const inputs = widths[i] as number;
    const bound = Math.sqrt(6 / (inputs + outputs));
    const values = random.stream(`memory${i}`).uniform(heads * inputs * outputs);
    return tensor(
      device,
      values.map((u) => (2 * u - 1) * bound),
      [heads, inputs, outputs],
    );
  });
  return {
    storeNorm: full(device, [dim], 1),
    retrieveNorm: full(device, [dim], 1),
    wq: matrix('wq', width, dim),
    wk: matrix('wk', width, dim),
    wv: matrix('wv', width, dim),
    ...(shortConv > 1 && { taps: firstTaps(device, random.stream('taps'), [shortConv, 3, width]) }),
    wRate: matrix('wRate', heads, dim, 0.02),
    bRate: full(device, [heads], config.rateBias ?? 0),
    ...(orders > 0 && {
      wMomentum: matrix('wMomentum', heads * orders, dim, 0.02),
      bMomentum: full(device, [heads * orders], config.momentumBias ?? 0),
    }),
    wForget: matrix('wForget', heads, dim, 0.02),
    bForget: full(device, [heads], config.forgetBias ?? -3),
    ...(resolved.qkNorm !== 'none' && { qGain: zeros(device, [heads, headDim]), kGain: zeros(device, [heads, headDim]) }),
    ...(resolved.outNorm && { outGain: zeros(device, [heads, headDim]) }),
    ...(heads > 1 && { wGate: matrix('wGate', heads, dim, 0.02) }),
    wOut: matrix('wOut', dim, width, 1 / Math.sqrt(width * 8)),
    memory,
    ...(resolved.residualNorm && { gamma: zeros(device, [heads, headDim]) }),
  };
}

/** The own token's tap is 1, the others are small: a start near no convolution that already tells orders apart. */
function firstTaps(device: Device, random: RandomStream, shape: readonly [number, number, number]): Tensor {
  const channels = shape[1] * shape[2];
  const earlier = random.normal((shape[0] - 1) * channels).map((x) => 0.3 * x);
  const values = new Float32Array(shape[0] * channels).fill(1, earlier.length);
  values.set(earlier);
  return tensor(device, values, shape);
}

/** The parameters as `titansLayer` takes them. */
export function layerParams(params: TitansMixerParams): TitansLayerParams {
  const own = (name: string): Tensor | undefined => params[name] as Tensor | undefined;
  return {
    storeNorm: params.storeNorm,
    retrieveNorm: params.retrieveNorm,
    wq: params.wq,
    wk: params.wk,
    wv: params.wv,
    taps: own('taps'),
    wRate: params.wRate,
    bRate: params.bRate,
    wMomentum: own('wMomentum'),
    bMomentum: own('bMomentum'),
    wForget: params.wForget,
    bForget: params.bForget,
    qGain: own('qGain'),
    kGain: own('kGain'),
    outGain: own('outGain'),
    wGate: own('wGate'),
    wOut: params.wOut,
    memory: { weights: params.memory, gamma: own('gamma') },
  };
}
