import {
  concat,
  type Device,
  type DType,
  HeedError,
  type MixContext,
  type Params,
  RandomStream,
  reshape,
  scope,
  type Tensor,
  tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams, projectQkv, truncatedNormal } from '@heed/core/nn';
import { lightning2Slopes } from '../scan/slopes.js';
import { clippedTable } from './clip.js';
import { drawFeatures } from './features.js';
import { nprf } from './function.js';
import type { NprfOptions } from './options.js';
import { type NprfState, nprfStart, nprfStep } from './stream.js';

/** Settings of a causal layer; the options of `nprf` besides. */
export interface NprfMixerConfig extends Omit<NprfOptions, 'causal' | 'lengths' | 'clip'> {
  dim: number;
  heads: number;
  /** Each head has keys of its own: only `heads` is taken. */
  kvHeads?: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Random features m a head. Default headDim. */
  features?: number;
  /** Distances with a bias of their own, 2 or more; those from `distances - 1` on share one. A stream of more than twice as many tokens keeps room for twice as many. Default 2048. */
  distances?: number;
  /**
   * Start of the bias: `normal`, N(0, 0.02), knows no distance; `alibi` falls with it, -2^(-8 (h + 1) / heads) a token for head h down to
   * -8, so that short trainings see neighbours from the first step. Default `normal`.
   */
  biasStart?: 'normal' | 'alibi';
  /** Of the random features, which are no parameters: a model is used with the seed that it was trained with. Default 0. */
  seed?: number;
  /** Blocks of headDim orthogonal features. Default true. */
  orthogonal?: boolean;
  /** `f16`: products around the operator in f16; it computes in f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface NprfMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, 3 heads headDim]. */
  qkv: LinearParams;
  /** Relative position bias by distance, the farthest first, [heads, distances]. */
  bias: Tensor;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * Kernelised attention with relative position bias as a causal token mixer: fused projection, `nprf`, projection. Positions come from
 * the bias alone.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function nprfMixer(config: NprfMixerConfig): TokenMixer<NprfMixerParams, NprfState> {
  const { dim, heads, kvHeads = heads, distances = 2048, biasStart = 'normal', seed = 0, orthogonal = true, precision = 'f32' } = config;
  const { featureMap, normalize, normEps, denominatorEps, path } = config;
  const headDim = config.headDim ?? dim / heads;
  const { features = headDim } = config;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `nprfMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (kvHeads !== heads)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `nprfMixer: kvHeads is ${kvHeads} with ${heads} heads; each head has keys of its own, leave kvHeads out`,
    );
  if (biasStart !== 'normal' && biasStart !== 'alibi')
    throw new HeedError('INVALID_ARGUMENT', `nprfMixer: biasStart is "${String(biasStart)}"; it is "normal" or "alibi"`);
  for (const [name, n, least] of [
    ['features', features, 1],
    ['distances', distances, 2],
  ] as const)
    if (!Number.isInteger(n) || n < least)
      throw new HeedError('INVALID_ARGUMENT', `nprfMixer: ${name} is ${n}; it must be an integer of ${least} or more`);
  const given = Object.fromEntries(
    Object.entries({ featureMap, normalize, normEps, denominatorEps }).filter(([, value]) => value !== undefined),
  ) as Pick<NprfOptions, 'featureMap' | 'normalize' | 'normEps' | 'denominatorEps'>;
  const shape = { heads, kvHeads, headDim, precision };
  const width = heads * headDim;
  let drawn: Float32Array | undefined;
  const randomFeatures = (device: Device): Tensor => {
    drawn ??= drawFeatures(new RandomStream(seed, 'nprf features'), heads, features, headDim, orthogonal);
    return tensor(device, drawn, [heads, features, headDim]);
  };
  const clip = distances - 1;
  /** The parameter as the table of the offsets -clip .. clip: later keys are hidden. */
  const clipped = (bias: Tensor): Tensor => concat([bias, zeros(bias.device, [heads, clip])], 1);
  /** For a stream of few tokens every distance has an entry. */
  const whole = (bias: Tensor, capacity: number): Tensor =>
    concat([clippedTable(bias, clip, capacity - 1, 0), zeros(bias.device, [heads, capacity - 1])], 1);
  const project = (params: NprfMixerParams, mixed: Tensor): Tensor =>
    linear(params.out, reshape(mixed, [mixed.dim(0), mixed.dim(1), width]), { precision, outDType: 'f32' });
  const starts = new WeakSet<NprfState>();

  return {
    name: 'nprf',
    init(device: Device, random: RandomStream): NprfMixerParams {
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width }),
        bias:
          biasStart === 'alibi'
            ? fallingBias(device, heads, distances)
            : truncatedNormal(device, random.stream('bias'), [heads, distances], 0.02),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: NprfMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, 0);
        const mixed = nprf(q, k, v, randomFeatures(x.device), clipped(params.bias), {
          ...given,
          clip,
          ...(path && { path }),
          causal: true,
          ...(context.lengths && { lengths: context.lengths }),
        });
        return { out: project(params, mixed) };
      });
    },
    start(device: Device, { batch, capacity }: { batch: number; capacity: number; dtype: DType }): NprfState {
      // the bias is a parameter, which `start` is not given: the first step brings it
      const room = capacity > 2 * distances ? { clip } : { capacity };
      const entries = capacity > 2 * distances ? 2 * clip + 1 : 2 * capacity - 1;
      return scope(() => {
        const tables = { features: randomFeatures(device), rpeBias: zeros(device, [heads, entries]) };
        return nprfStart(device, { ...given, batch, heads, headDim, ...room, ...tables });
      });
    },
    step(params: NprfMixerParams, x: Tensor, state: NprfState, _context: MixContext): Tensor {
      return scope(() => {
        if (!starts.has(state)) {
          starts.add(state);
          state.setBias(state.settings.clip === undefined ? whole(params.bias, state.sizes.capacity) : clipped(params.bias));
        }
        const { q, k, v } = projectQkv(params.qkv, x, shape, 0);
        return project(params, nprfStep(q, k, v, state));
      });
    },
  };
}

/** -slope x distance a head, the farthest distance first; bounded, so that every distance keeps a gradient. */
function fallingBias(device: Device, heads: number, distances: number): Tensor {
  const values = lightning2Slopes({ heads }).flatMap((slope) =>
    Array.from({ length: distances }, (_, i) => Math.max(-8, -slope * (distances - 1 - i))),
  );
  return tensor(device, values, [heads, distances]);
}
