import { HeedError } from '@heed/core';
import type { LayerActivation } from '../layer/activation.js';
import { randomHouseholder } from './positions.js';

/** Settings of a layer's attention. */
export interface TransnormerMixerConfig {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** `norm`: NormAttention over all tokens; `diag`: DiagAttention in blocks. Default: `diag` in the first half of `layers`, `norm` in the second. */
  kind?: 'norm' | 'diag';
  /** Index of the layer and their number; together with or in place of `kind`. */
  layer?: number;
  layers?: number;
  /** `T1`: elu, and relu of the block scores; `T2`: 1 + elu, and softmax in the blocks. Default `T2`. */
  variant?: 'T1' | 'T2';
  /** In place of the variant's: on queries and keys of NormAttention, on the scores of DiagAttention without softmax. */
  activation?: LayerActivation;
  /** In place of the variant's: softmax in the blocks. */
  softmax?: boolean;
  /** Token t sees tokens up to t. Default true; false has no stream. */
  causal?: boolean;
  /** Tokens of a block. Default 64. */
  block?: number;
  /** LRPE with trained angles. Default true. */
  lrpe?: boolean;
  /** Unit vector of LRPE's reflection, [headDim]. Default: drawn from `seed`, and the layer's index. */
  householder?: readonly number[];
  /** Default 0. */
  seed?: number;
  /** Default 1e-8. */
  normEps?: number;
  /** Factor on q.k. Default: 1/sqrt(headDim) in blocks; 1 in NormAttention (1 / headDim in f16: the norm takes it out again). */
  scale?: number;
  /** Tokens a segment of NormAttention. Default: as many segments as fill the device. */
  chunk?: number;
  /** `f16`: products, queries, keys and values in f16. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Settings with every default filled in. */
export type TransnormerSettings = Required<Omit<TransnormerMixerConfig, 'layer' | 'layers' | 'seed' | 'chunk' | 'variant'>> & {
  chunk: number | undefined;
};

/** @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT: what is wrong with a configuration */
export function settingsOf(config: TransnormerMixerConfig): TransnormerSettings {
  const { dim, heads, layer, layers, variant = 'T2', precision = 'f32', block = 64 } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `transnormerMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`,
    );
  if (!config.kind && (layer === undefined || layers === undefined))
    throw new HeedError('INVALID_ARGUMENT', 'transnormerMixer: neither kind nor layer and layers were given; give one of them');
  if (!(Number.isInteger(block) && block > 0))
    throw new HeedError('INVALID_ARGUMENT', `transnormerMixer: block is ${block}; it must be an integer of 1 or more`);
  const kind = config.kind ?? ((layer ?? 0) < Math.floor((layers ?? 0) / 2) ? 'diag' : 'norm');
  const own = kind === 'norm' ? (precision === 'f16' ? 1 / headDim : 1) : 1 / Math.sqrt(headDim);
  return {
    dim,
    heads,
    headDim,
    kind,
    activation: config.activation ?? (kind === 'diag' ? 'relu' : variant === 'T1' ? 'elu' : '1+elu'),
    softmax: config.softmax ?? variant === 'T2',
    causal: config.causal ?? true,
    block,
    lrpe: config.lrpe ?? true,
    householder: config.householder ?? randomHouseholder(headDim, (config.seed ?? 0) * 1000 + (layer ?? 0)),
    normEps: config.normEps ?? 1e-8,
    scale: config.scale ?? own,
    chunk: config.chunk,
    precision,
  };
}
