// A segment of S_t = diag(exp g_t) S_(t-1) + k_t v_t^T, out_t = q_t S_t in steps of up to a chunk of tokens, as products of fragments. With
// b the running sum of gates in a step and m a channel's middle between its first and last sum,
//   Q' = exp(b - m) Q, K' = exp(m - b) K,   out = (Q' K'^T masked) V + Q' (exp(m) S),   S <- exp(b_end) S + exp(b_end - m) K'^T V
// tile    `chunk` tokens x `columns` of S a workgroup; S stays in f32 in the lanes, K'^T V reaches it through workgroup memory
// bytes   reads q, k, g once a column tile and v once, writes out once
// limits  f16 operands; a step ends before a channel decays by 2^-24, so that Q' and K' stay in range: strong gates take short steps
// source  Yang et al. 2023 (arXiv 2312.06635), section 4; roles swapped (gates of columns) and time reversed for its backward
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, write } from '@heed/core/~internal';
import { gatedMatrixText } from './gated-matrix-text.js';
import { type GatedMatrixTiles, type GatedSide } from './gated-matrix-tile.js';
import type { GatedMatrixSpec } from './gated-pieces.js';
import { type GatedStatesSpec, gatedStatesText } from './gated-states-text.js';
import type { PairLoad } from './gated-tile.js';
import { type GatedSweep } from './gated-recurrent.js';
import { gateStrides } from './strides.js';
import { sweepUniforms, sweepValues } from './sweep.js';
import { type HalfLoad, halfLoad, rowWidth } from './views.js';

const halfRaw: Record<HalfLoad, string> = { half8: 'vec4u', half4: 'vec4<f16>', half: 'f16' };
const pairRaw: Record<PairLoad, string> = { pair: 'u32', one: 'f16' };

const uniforms = { ...sweepUniforms, ...gateStrides.uniforms, eps: 'f32' } as const;

const gateRaw = (s: GatedMatrixSpec | GatedStatesSpec): string => (s.gate === 'channels' && s.gatePairs === 'pair' ? 'vec2f' : 'f32');

const outputsKernel = defineKernel({
  name: 'linear-gated-chunks',
  tier: 'matrix',
  bindings: {
    q: read<GatedMatrixSpec>('f16', { raw: (s) => (s.side === 'rows' ? pairRaw[s.pairs] : halfRaw[s.loadQ]) }),
    k: read<GatedMatrixSpec>('f16', { raw: (s) => (s.side === 'rows' ? pairRaw[s.pairs] : halfRaw[s.loadK]) }),
    v: read<GatedMatrixSpec>('f16', { raw: (s) => (s.side === 'columns' ? pairRaw[s.pairs] : halfRaw[s.loadV]) }),
    g: read<GatedMatrixSpec>('f32', { raw: gateRaw }),
    lengths: read<GatedMatrixSpec>('i32', { when: (s) => s.lengths }),
    initial: read<GatedMatrixSpec>('f32', { when: (s) => s.initial }),
    keySum: read<GatedMatrixSpec>('f32', { when: (s) => s.ones && s.initial }),
    state: readWrite<GatedMatrixSpec>('f32', { width: (s) => (s.valueDim % 4 === 0 ? 4 : 1), when: (s) => s.final }),
    out: write<GatedMatrixSpec>('float', { width: (s) => s.outWidth }),
  },
  uniforms,
  wgsl: gatedMatrixText,
});

// What each segment adds to the state, sum_t exp(b_end - b_t) k_t v_t^T, and its whole log-decay a channel; outputs are not formed.
// tile    as above without scores; a step lasts as long as no channel decays by 2^-24
// bytes   reads k and g once a column tile and v once, writes 4 keyDim valueDim and the log-decays a segment
const statesKernel = defineKernel({
  name: 'linear-gated-chunk-states',
  tier: 'matrix',
  bindings: {
    k: read<GatedStatesSpec>('f16', { raw: (s) => pairRaw[s.pairs] }),
    v: read<GatedStatesSpec>('f16', { raw: (s) => halfRaw[s.loadV] }),
    g: read<GatedStatesSpec>('f32', { raw: gateRaw }),
    lengths: read<GatedStatesSpec>('i32', { when: (s) => s.lengths }),
    state: readWrite<GatedStatesSpec>('f32'),
    totals: write<GatedStatesSpec>('f32'),
    keySum: write<GatedStatesSpec>('f32', { when: (s) => s.ones }),
  },
  uniforms,
  wgsl: gatedStatesText,
});

function pairLoad(...operands: readonly Tensor[]): PairLoad {
  const even = (x: Tensor): boolean =>
    x.offset % 2 === 0 &&
    x.dim(-1) % 2 === 0 &&
    x.strides.at(-1) === 1 &&
    x.strides.slice(0, -1).every((stride, axis) => stride % 2 === 0 || x.shape[axis] === 1);
  return operands.every(even) ? 'pair' : 'one';
}

/** What one dispatch over fragments reads and writes. */
export interface GatedMatrixRun {
  sweep: GatedSweep;
  tiles: GatedMatrixTiles;
  side: GatedSide;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  out: Tensor;
  /** State before each segment, f32 [batch, heads, segments, keyDim, valueDim], or [.., valueDim, keyDim] with `transposed`. */
  initial?: Tensor | undefined;
  transposed?: boolean | undefined;
  /** Written with the state behind each segment. */
  state?: Tensor | undefined;
  /** Divides outputs by the scan of a column of ones plus `eps`; `keySum` is that scan's state, as `initial`. Gates of rows only. */
  ones?: { eps: number; keySum: Tensor | undefined } | undefined;
}

/** Records the outputs of every segment, head and batch entry. */
export function runGatedMatrix({ sweep, tiles, side, q, k, v, out, initial, transposed = false, state, ones }: GatedMatrixRun): void {
  const tile = tiles[side];
  const [keyDim, valueDim] = [k.dim(3), v.dim(3)];
  const { gate } = sweep;
  const values = sweepValues({ ...sweep, decay: gate }, { q, k, v, out }, Math.ceil(valueDim / tile.columns), transposed, true);
  outputsKernel.run(k.device, {
    spec: {
      ...tile,
      side,
      gate: gate.rank === 4 ? 'channels' : 'head',
      pairs: side === 'rows' ? pairLoad(q, k) : pairLoad(v),
      gatePairs: gate.rank === 4 ? pairLoad(gate) : 'one',
      reverse: sweep.reverse,
      ones: ones !== undefined,
      outputs: true,
      keyDim,
      valueDim,
      loadQ: side === 'rows' ? 'half8' : halfLoad(q),
      loadK: side === 'rows' ? 'half8' : halfLoad(k),
      loadV: side === 'rows' ? halfLoad(v) : 'half8',
      outWidth: side === 'rows' ? rowWidth(out) : 1,
      initial: initial !== undefined,
      final: state !== undefined,
      lengths: sweep.lengths !== undefined,
      gain: false,
    },
    tensors: { q, k, v, g: gate, lengths: sweep.lengths, initial, keySum: ones?.keySum, state, out },
    uniforms: { eps: ones?.eps ?? 0, ...values, ...gateStrides.values({ g: gate }) },
    grid: [values.workgroups],
  });
}

/**
 * Records what each segment adds to the state, and its whole log-decay a channel.
 * @param tensors.state f32 [batch, heads, segments, keyDim, valueDim]
 * @param tensors.keySum f32 [batch, heads, segments, keyDim]: the same for a column of ones
 * @param tensors.totals f32 [batch, heads, segments, channels]; below -18 it may be less negative than the sum: nothing is left by then
 */
export function runGatedMatrixStates(
  sweep: GatedSweep,
  tiles: GatedMatrixTiles,
  { k, v, state, totals, keySum }: { k: Tensor; v: Tensor; state: Tensor; totals: Tensor; keySum?: Tensor | undefined },
): void {
  const tile = tiles.states;
  const [keyDim, valueDim] = [k.dim(3), v.dim(3)];
  const { gate } = sweep;
  const values = sweepValues({ ...sweep, decay: gate }, { k, v }, Math.ceil(valueDim / tile.columns), false, true);
  statesKernel.run(k.device, {
    spec: {
      ...tile,
      gate: gate.rank === 4 ? 'channels' : 'head',
      pairs: pairLoad(k),
      gatePairs: gate.rank === 4 ? pairLoad(gate) : 'one',
      reverse: sweep.reverse,
      ones: keySum !== undefined,
      outputs: false,
      keyDim,
      valueDim,
      loadQ: 'half8',
      loadK: 'half8',
      loadV: halfLoad(v),
      outWidth: 1,
      initial: false,
      final: true,
      lengths: sweep.lengths !== undefined,
      gain: false,
    },
    tensors: { k, v, g: gate, lengths: sweep.lengths, state, totals, keySum },
    uniforms: { eps: 0, ...values, ...gateStrides.values({ g: gate }) },
    grid: [values.workgroups],
  });
}
