import {
  attention,
  broadcastTo,
  cast,
  concat,
  type Device,
  type DType,
  full,
  HeedError,
  type RandomStream,
  reshape,
  rmsNorm,
  scope,
  slice,
  split,
  stack,
  type Tensor,
  type TokenMixer,
  unsqueeze,
} from '@heed/core';
import { kv, type Mask, maskFrom, q as queryPosition } from '@heed/core/attention';
import { uniform } from '@heed/core/~internal';
import { titansInitialState, titansRetrieve, titansWithState } from './forward.js';
import {
  gateBranches,
  initGate,
  lookBack,
  resolveHybrid,
  type TitansGateParams,
  type TitansHybridConfig,
  type TitansHybridParams,
} from './hybrid-mixers.js';
import { chunkMeans, titansDrive, titansFinish, titansGates } from './layer.js';
import { initTitans, layerParams } from './mixer-params.js';
import { memoryStep, TitansMixerState } from './mixer-state.js';
import { initShortAttention, mergeHeads, persistentOf, projectShort } from './short-attention.js';
import type { TitansMemory } from './memory.js';

/**
 * Memory as context (MAC, Behrouz et al. 2024, section 4.1, equations 21 to 25), segment by segment: h = what the memory of the
 * segment's start gives for its tokens; attention over persistent memory, h and the segment; its output y is stored, and gated by
 * what the memory now gives for it. Token i sees h_j and x_j for j <= i only, so that the mixer is causal.
 *
 * Segments are a multiple of chunkSize and follow each other in time; without one the other layouts are faster.
 * @throws HeedError INVALID_ARGUMENT when chunkSize does not divide segment
 */
export function titansMacMixer(config: TitansHybridConfig): TokenMixer<TitansHybridParams, TitansMixerState> {
  const { resolved, shape } = resolveHybrid('titansMacMixer', config);
  const { dim, options, orders } = resolved;
  const { segment, persistent } = shape;
  if (segment % options.chunkSize !== 0)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `titansMacMixer: chunkSize ${options.chunkSize} does not divide segment ${segment}; choose a divisor`,
    );

  /** Attention of a piece of one segment over persistent memory, retrieved tokens and tokens; keys before it are interleaved (h_0, x_0, h_1, ...). */
  function attend(
    params: TitansHybridParams,
    x: Tensor,
    memory: TitansMemory,
    offset: number,
    before?: { k: Tensor; v: Tensor },
  ): { y: Tensor; rows: { k: Tensor; v: Tensor } } {
    const layer = layerParams(params.memory);
    const { q: asked, asking } = titansDrive(layer, x, options);
    const h = rmsNorm(titansFinish(layer, titansRetrieve(asked, { memory }, options), asking, options), params['contextGain'] as Tensor);
    const [q, kx, vx] = projectShort(params.attention, x, shape, offset);
    const [, kh, vh] = projectShort(params.attention, h, shape, offset);
    const paired = (a: Tensor, b: Tensor): Tensor => reshape(stack([a, b], 2), [a.dim(0), 2 * a.dim(1), a.dim(2), a.dim(3)]);
    const joined = (own: Tensor, rest: Tensor | undefined): Tensor => (rest ? concat([rest, own], 1) : own);
    const k = joined(paired(kh, kx), before?.k);
    const v = joined(paired(vh, vx), before?.v);
    const learned = persistentOf(params.attention);
    const withLearned = (t: Tensor, own: Tensor | undefined): Tensor =>
      own ? joined(t, broadcastTo(unsqueeze(own, 0), [t.dim(0), ...own.shape])) : t;
    const mixed = attention(q, withLearned(k, learned?.k), withLearned(v, learned?.v), {
      mask: pairsUpTo(persistent),
      queryOffset: (k.dim(1) - 2 * x.dim(1)) / 2,
      precision: shape.precision,
    });
    return { y: mergeHeads(params.attention, mixed, shape.precision), rows: { k, v } };
  }

  const finish = (params: TitansHybridParams, y: Tensor, m: Tensor): Tensor =>
    gateBranches(params['gate'] as TitansGateParams, y, m, shape.precision);

  return {
    name: 'titans-mac',
    init: (device: Device, random: RandomStream): TitansHybridParams => ({
      memory: initTitans(device, random.stream('memory'), resolved),
      attention: initShortAttention(device, random.stream('attention'), dim, shape),
      gate: initGate(device, random, dim),
      contextGain: full(device, [dim], 1),
    }),
    apply: (params: TitansHybridParams, x: Tensor): { out: Tensor } =>
      scope(() => {
        const layer = layerParams(params.memory);
        const tokens = x.dim(1);
        if (tokens === 0) return { out: cast(x, 'f32') };
        const sizes = Array.from({ length: Math.ceil(tokens / segment) }, (_, s) => Math.min(segment, tokens - s * segment));
        let state = titansInitialState({ memory: layer.memory }, x.dim(0), orders);
        const outs = (sizes.length > 1 ? split(x, sizes, 1) : [x]).map((part, s) => {
          const { y } = attend(params, part, state.memory, s * segment);
          const { q, k, v, rate, stored, asking } = titansDrive(layer, y, options);
          const { momentum, forget } = titansGates(layer, chunkMeans(stored, options.chunkSize), options.heads);
          const made = titansWithState(q, k, v, {
            ...options,
            memory: layer.memory,
            learningRate: rate,
            forget,
            initialState: state,
            ...(momentum.length > 0 && { momentum }),
          });
          state = made.state;
          return finish(params, y, titansFinish(layer, made.out, asking, options));
        });
        return { out: outs.length > 1 ? concat(outs, 1) : (outs[0] as Tensor) };
      }),
    start: (device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TitansMixerState =>
      new TitansMixerState(device, batch, dim),
    step: (params: TitansHybridParams, x: Tensor, state: TitansMixerState): Tensor =>
      scope(() => {
        const layer = layerParams(params.memory);
        const outs: Tensor[] = [];
        for (let from = 0; from < x.dim(1);) {
          const place = state.tokens % segment;
          const count = Math.min(segment - place, x.dim(1) - from);
          // the memory at the start of the segment answers for all of it
          if (place === 0) state.carry(firstOf(state.memory(layer, options, orders).values.memory));
          const first = starts(state.rows);
          const memory: TitansMemory = {
            weights: layer.memory.weights.map((_, i) => first[`start${i}`] as Tensor),
            gamma: layer.memory.gamma && first['startGamma'],
          };
          const { y, rows } = attend(
            params,
            slice(x, 1, from, from + count),
            memory,
            state.tokens,
            place > 0 ? lookBack(state) : undefined,
          );
          outs.push(finish(params, y, memoryStep(layer, y, state, options, orders)));
          const ends = place + count === segment;
          state.carry(ends ? {} : { ...rows, ...first });
          state.advance(count);
          from += count;
        }
        if (outs.length === 0) return cast(x, 'f32');
        return outs.length > 1 ? concat(outs, 1) : (outs[0] as Tensor);
      }),
  };
}

/** The tensors of a memory by the names under which a stream carries them. */
function firstOf(memory: TitansMemory): Record<string, Tensor> {
  return { ...Object.fromEntries(memory.weights.map((w, i) => [`start${i}`, w])), ...(memory.gamma && { startGamma: memory.gamma }) };
}

function starts(rows: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(rows).filter(([name]) => name.startsWith('start')));
}

/** Query i of a segment sees the persistent keys and the pairs (h_j, x_j) of j <= i. */
function pairsUpTo(persistent: number): Mask {
  const first = uniform('macPersistent', 'i32');
  return maskFrom({ predicate: kv.lt(first).or(kv.sub(first).div(2).le(queryPosition)), uniforms: { macPersistent: persistent } });
}
