import {
  type Device,
  type DType,
  full,
  HeedError,
  mul,
  type Params,
  type RandomStream,
  rmsNorm,
  scope,
  sigmoid,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { titansLayer } from './layer.js';
import { initTitans, layerParams, type Resolved, resolveTitans, type TitansMixerConfig, type TitansMixerParams } from './mixer-params.js';
import { memoryStep, TitansMixerState } from './mixer-state.js';
import {
  initShortAttention,
  type ShortAttentionConfig,
  type ShortAttentionParams,
  type ShortAttentionShape,
  slide,
} from './short-attention.js';

/** Settings of a memory with short attention. */
export interface TitansHybridConfig extends Omit<TitansMixerConfig, 'shortConv'>, ShortAttentionConfig {}

/** Parameters of a memory with short attention. */
export interface TitansHybridParams {
  [name: string]: Params;
  memory: TitansMixerParams;
  attention: ShortAttentionParams;
}

/** Gains of the norms in front of the product of two branches, and the projection behind it. */
export interface TitansGateParams {
  [name: string]: Params;
  attentionGain: Tensor;
  memoryGain: Tensor;
  out: LinearParams;
}

export function resolveHybrid(who: string, config: TitansHybridConfig): { resolved: Resolved; shape: ShortAttentionShape } {
  const resolved = resolveTitans(who, config);
  const { segment = 256, persistent = 16, precision = 'f32' } = config;
  if (!Number.isInteger(segment) || segment < 1 || !Number.isInteger(persistent) || persistent < 0)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: segment ${segment} and persistent ${persistent}; they are whole numbers, of at least 1 and 0`,
    );
  return { resolved, shape: { heads: resolved.heads, headDim: resolved.headDim, segment, persistent, rope: config.rope, precision } };
}

export function initGate(device: Device, random: RandomStream, dim: number): TitansGateParams {
  return {
    attentionGain: full(device, [dim], 1),
    memoryGain: full(device, [dim], 1),
    out: initLinear(device, random.stream('gate'), { inputs: dim, outputs: dim, std: 1 / Math.sqrt(dim * 2) }),
  };
}

/** y (x) m: both branches normed with learned gains, the memory's through a sigmoid; then a projection. */
export function gateBranches(params: TitansGateParams, y: Tensor, m: Tensor, precision: 'f32' | 'f16'): Tensor {
  const product = mul(rmsNorm(y, params.attentionGain), sigmoid(rmsNorm(m, params.memoryGain)));
  return linear(params.out, product, { precision, outDType: 'f32' });
}

/**
 * Memory as gate (MAG, Behrouz et al. 2024, section 4.2): sliding attention with persistent memory and the neural memory read the
 * same input side by side; the product of both, normed, is the output.
 */
export function titansMagMixer(config: TitansHybridConfig): TokenMixer<TitansHybridParams, TitansMixerState> {
  const { resolved, shape } = resolveHybrid('titansMagMixer', config);
  const { dim, options, orders } = resolved;
  const gate = (params: TitansHybridParams, y: Tensor, m: Tensor): Tensor =>
    gateBranches(params['gate'] as TitansGateParams, y, m, shape.precision);
  return {
    name: 'titans-mag',
    init: (device: Device, random: RandomStream): TitansHybridParams => ({
      memory: initTitans(device, random.stream('memory'), resolved),
      attention: initShortAttention(device, random.stream('attention'), dim, shape),
      gate: initGate(device, random, dim),
    }),
    apply: (params: TitansHybridParams, x: Tensor): { out: Tensor } =>
      scope(() => ({
        out: gate(params, slide(params.attention, x, shape).out, titansLayer(layerParams(params.memory), x, options)),
      })),
    start: (device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TitansMixerState =>
      new TitansMixerState(device, batch, dim),
    step: (params: TitansHybridParams, x: Tensor, state: TitansMixerState): Tensor =>
      scope(() => {
        const { out, rows } = slide(params.attention, x, shape, state.tokens, lookBack(state));
        const mixed = gate(params, out, memoryStep(layerParams(params.memory), x, state, options, orders));
        state.carry(rows);
        state.advance(x.dim(1));
        return mixed;
      }),
  };
}

/**
 * Memory as layer (MAL, section 4.3): the neural memory reads the input, sliding attention with persistent memory reads what it
 * gives.
 */
export function titansMalMixer(config: TitansHybridConfig): TokenMixer<TitansHybridParams, TitansMixerState> {
  const { resolved, shape } = resolveHybrid('titansMalMixer', config);
  const { dim, options, orders } = resolved;
  return {
    name: 'titans-mal',
    init: (device: Device, random: RandomStream): TitansHybridParams => ({
      memory: initTitans(device, random.stream('memory'), resolved),
      attention: initShortAttention(device, random.stream('attention'), dim, shape),
      norm: full(device, [dim], 1),
    }),
    apply: (params: TitansHybridParams, x: Tensor): { out: Tensor } =>
      scope(() => {
        const y = rmsNorm(titansLayer(layerParams(params.memory), x, options), params['norm'] as Tensor);
        return { out: slide(params.attention, y, shape).out };
      }),
    start: (device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TitansMixerState =>
      new TitansMixerState(device, batch, dim),
    step: (params: TitansHybridParams, x: Tensor, state: TitansMixerState): Tensor =>
      scope(() => {
        const y = rmsNorm(memoryStep(layerParams(params.memory), x, state, options, orders), params['norm'] as Tensor);
        const { out, rows } = slide(params.attention, y, shape, state.tokens, lookBack(state));
        state.carry(rows);
        state.advance(x.dim(1));
        return out;
      }),
  };
}

/** Keys and values that a stream carries, none before its first token. */
export function lookBack(state: TitansMixerState): { k: Tensor; v: Tensor } | undefined {
  const { k, v } = state.rows;
  return k && v && k.dim(1) > 0 ? { k, v } : undefined;
}
