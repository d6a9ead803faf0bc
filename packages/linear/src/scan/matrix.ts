// A segment of the scan in chunks, as products of fragments (Qin et al. 2024, section 3.2): with w(r) = lambda^r,
//   out = (Q K^T masked by w(i-j)) V + (w(r+1) Q) S,  S <- w(C) S + (w(C-1-r) K)^T V
// tile    `chunk` tokens x `columns` of S a workgroup; subgroups own blocks of rows and columns. With outputs S stays in f32 registers;
//         what a chunk adds, summed in f16 fragments, meets it in workgroup memory, where S becomes an f16 operand; scores are
//         masked there, too. Without outputs S stays in f32 fragments
// bytes   reads q, k once a column tile and v once, writes out once; without `out` reads k, v and writes one S a segment
// limits  f16 operands; states and sums f32. What becomes an f16 operand again is scaled by a power of two that keeps it in range
// source  shared with `recurrent.ts`: reverse time, roles, transposed states
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, write } from '@heed/core/~internal';
import { type ChunkSpec, matrixText } from './matrix-text.js';
import type { MatrixTiles } from './matrix-tile.js';
import { keyDimOf, type Sweep, sweepUniforms, sweepValues, valueDimOf } from './sweep.js';
import { type HalfLoad, halfLoad, rowWidth } from './views.js';

const halfRaw: Record<HalfLoad, string> = { half8: 'vec4u', half4: 'vec4<f16>', half: 'f16' };

const kernel = defineKernel({
  name: 'linear-chunks',
  tier: 'matrix',
  bindings: {
    q: read<ChunkSpec>('f16', { raw: (s) => halfRaw[s.loadQ], when: (s) => s.outputs }),
    k: read<ChunkSpec>('f16', { raw: (s) => halfRaw[s.loadK] }),
    v: read<ChunkSpec>('f16', { raw: (s) => halfRaw[s.loadV] }),
    decay: read<ChunkSpec>('f32'),
    theta: read<ChunkSpec>('f32', { when: (s) => s.turned !== 'none' }),
    lengths: read<ChunkSpec>('i32', { when: (s) => s.lengths }),
    ranges: read<ChunkSpec>('u32', { when: (s) => s.ranges }),
    initial: read<ChunkSpec>('f32', { when: (s) => s.initial }),
    state: readWrite<ChunkSpec>('f32', { when: (s) => s.final }),
    out: write<ChunkSpec>('float', {
      raw: (s) => (s.outWidth === 8 ? 'vec4u' : undefined),
      width: (s) => s.outWidth,
      when: (s) => s.outputs,
    }),
  },
  uniforms: { ...sweepUniforms, turnOffset: 'u32' },
  wgsl: matrixText,
});

/** What one dispatch over fragments reads and writes; without `out` only what each segment, or part of one, adds to the state. */
export interface MatrixRun {
  sweep: Sweep;
  tiles: MatrixTiles;
  k: Tensor;
  v: Tensor;
  q?: Tensor | undefined;
  out?: Tensor | undefined;
  /** State before each segment, f32 [batch, heads, segments, keyDim, valueDim], or [.., valueDim, keyDim] with `transposed`. */
  initial?: Tensor | undefined;
  transposed?: boolean | undefined;
  /** Written with the state behind each segment; without `out` with that of each part of it, [parts, ..], which add up. */
  state?: Tensor | undefined;
  parts?: number | undefined;
}

/** Records one dispatch over every segment, head and batch entry. */
export function runMatrix({ sweep, tiles, q, k, v, out, initial, transposed = false, state, parts = 1 }: MatrixRun): void {
  const tile = out ? tiles.outputs : tiles.states;
  const { turns } = sweep;
  const [keyDim, valueDim] = [keyDimOf({ k, turns }), valueDimOf({ v, turns })];
  const values = sweepValues(sweep, { q, k, v, out }, Math.ceil(valueDim / tile.columns), transposed, true, parts, tile.chunk);
  kernel.run(k.device, {
    spec: {
      outputs: out !== undefined,
      keyDim,
      valueDim,
      loadQ: halfLoad(q),
      loadK: halfLoad(k),
      loadV: halfLoad(v),
      outWidth: out?.dtype === 'f16' && halfLoad(out) === 'half8' ? 8 : rowWidth(out),
      initial: initial !== undefined,
      final: state !== undefined,
      lengths: sweep.lengths !== undefined,
      ranges: sweep.ranges !== undefined,
      gain: out !== undefined && sweep.gain === true,
      turned: turns?.of ?? 'none',
      turnForm: turns?.form ?? 'concat',
      ...tile,
    },
    tensors: { q, k, v, decay: sweep.decay, theta: turns?.theta, lengths: sweep.lengths, ranges: sweep.ranges, initial, state, out },
    uniforms: { turnOffset: turns?.offset ?? 0, ...values },
    grid: [values.workgroups],
  });
}
