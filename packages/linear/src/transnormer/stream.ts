import { cast, concat, copyInto, type Device, HeedError, scope, slice, type Tensor, zeros } from '@heed/core';
import { decayScanStep } from '../scan/decay-scan.js';
import { HeldTensors } from '../scan/held-tensors.js';
import { blockAttention, transnormerDiagAttention } from './forward.js';
import type { TransnormerSettings } from './options.js';
import { placed, placedForScan, type TransnormerPositions } from './positions.js';

/**
 * State of a stream. NormAttention: one matrix a head, f32 [batch, heads, headDim, headDim]. DiagAttention: keys and values of the
 * current block, f32 [batch, block, heads, headDim].
 */
export type TransnormerState = HeldTensors;

/** An empty stream of a layer. */
export function startOf(device: Device, settings: TransnormerSettings, batch: number): TransnormerState {
  const { kind, heads, headDim, block, causal } = settings;
  if (!causal)
    throw new HeedError('UNSUPPORTED', 'transnormerMixer: a stream of causal: false; what sees later tokens has none, use causal: true');
  if (kind === 'norm') return new HeldTensors(device, 'transnormer-norm', { state: zeros(device, [batch, heads, headDim, headDim]) });
  const shape = [batch, block, heads, headDim];
  return new HeldTensors(device, 'transnormer-diag', { keys: zeros(device, shape), values: zeros(device, shape) });
}

/** Outputs of the next tokens, [batch, n, heads, headDim], before the norm; the state is updated in place. */
export function stepOf(
  settings: TransnormerSettings,
  { q, k, v }: { q: Tensor; k: Tensor; v: Tensor },
  state: TransnormerState,
  positions: TransnormerPositions | undefined,
): Tensor {
  const { scale, chunk, kind } = settings;
  const out = scope(() => {
    if (kind === 'diag') return blockStep(settings, { q, k, v }, state, positions);
    const { turning, ...operands } = positions ? placedForScan('transnormer', q, k, positions, state.tokens) : { q, k, turning: undefined };
    const options = { scale, outDType: 'f32' as const, ...(chunk !== undefined && { chunk }), ...(turning && { turning }) };
    return decayScanStep(operands.q, operands.k, v, state.get('state'), options, 'transnormer');
  });
  state.advance(q.dim(1));
  return out;
}

/** Tokens that complete the current block, whole blocks side by side, then the beginning of the next block. */
function blockStep(
  settings: TransnormerSettings,
  { q, k, v }: { q: Tensor; k: Tensor; v: Tensor },
  state: TransnormerState,
  positions: TransnormerPositions | undefined,
): Tensor {
  const { block } = settings;
  const tokens = q.dim(1);
  const outs: Tensor[] = [];
  for (let at = 0; at < tokens;) {
    const filled = (state.tokens + at) % block;
    const whole = filled === 0 ? Math.floor((tokens - at) / block) * block : 0;
    const count = whole || Math.min(tokens - at, block - filled);
    const [a, b, c] = [q, k, v].map((x) => slice(x, 1, at, at + count)) as [Tensor, Tensor, Tensor];
    if (whole) outs.push(cast(transnormerDiagAttention(a, b, c, { ...settings, ...(positions && { positions }) }), 'f32'));
    else {
      const [queries, keys] = positions ? [a, b].map((x) => placed(x, positions, filled)) : [a, b];
      const held = (name: string, source: Tensor): Tensor => {
        copyInto(slice(state.get(name), 1, filled, filled + count), cast(source, 'f32'));
        return slice(state.get(name), 1, 0, filled + count);
      };
      outs.push(blockAttention(cast(queries as Tensor, 'f32'), held('keys', keys as Tensor), held('values', c), settings));
    }
    at += count;
  }
  if (outs.length === 0) return cast(v, 'f32');
  return outs.length === 1 ? (outs[0] as Tensor) : concat(outs, 1);
}
