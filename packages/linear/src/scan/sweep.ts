import type { Tensor } from '@heed/core';
import { rowStrides, type Strides } from './strides.js';
import type { TurnForm } from './turn-text.js';

/** Positions by which a kernel on fragments turns operands as it loads them. */
export interface ScanTurns {
  form: TurnForm;
  /** Contiguous f32: [heads, headDim] with `concat`, [headDim / 2] with `rotate`. */
  theta: Tensor;
  /** Position of the first token. */
  offset: number;
  /** Queries and keys, or values (the roles of a backward). */
  of: 'keys' | 'values';
}

/** Width of keys as the scan sees them. */
export function keyDimOf({ k, turns }: { k: Tensor; turns?: ScanTurns | undefined }): number {
  return turns?.form === 'concat' && turns.of === 'keys' ? 2 * k.dim(3) : k.dim(3);
}

/** Width of values as the scan sees them. */
export function valueDimOf({ v, turns }: { v: Tensor; turns?: ScanTurns | undefined }): number {
  return turns?.form === 'concat' && turns.of === 'values' ? 2 * v.dim(3) : v.dim(3);
}

/** What one dispatch of a scan kernel goes over. */
export interface Sweep {
  batch: number;
  tokens: number;
  heads: number;
  /** Segments of a sequence, each swept by a workgroup a column tile. */
  segments: number;
  segmentTokens: number;
  /**
   * In place of equal segments: head, first token and token behind the last of each of `segments` runs, u32; only for outputs on fragments.
   */
  ranges?: Tensor | undefined;
  /** Log-decay a head, f32 [heads]. */
  decay: Tensor;
  /** Valid tokens a batch entry, i32 [batch]; absent: all. */
  lengths?: Tensor | undefined;
  /** Tokens before these that `lengths` counts, too. */
  tokensBefore: number;
  /** From the last token to the first; the state a token meets is then the one behind it, undecayed. */
  reverse: boolean;
  queryScale: number;
  keyScale: number;
  /** `decay` has one element more, which outputs are multiplied by; only for kernels on fragments. */
  gain?: boolean | undefined;
  /** Only for kernels on fragments. */
  turns?: ScanTurns | undefined;
}

const strides = /* @__PURE__ */ rowStrides('q', 'k', 'v', 'out');
const sizes = {
  tokens: 'u32',
  tokensBefore: 'u32',
  heads: 'u32',
  segments: 'u32',
  segmentTokens: 'u32',
  columnTiles: 'u32',
  parts: 'u32',
  partStep: 'u32',
  workgroups: 'u32',
  queryScale: 'f32',
  keyScale: 'f32',
  stateScale: 'f32',
  reverse: 'u32',
  stateRow: 'u32',
  stateColumn: 'u32',
} as const;

/** Run-time values of the kernels of a scan. */
export const sweepUniforms: Strides<'q' | 'k' | 'v' | 'out', 'u32'> & typeof sizes = { ...strides.uniforms, ...sizes };

type SweepValues = { [K in keyof typeof sweepUniforms]: number };

/**
 * Run-time values of a dispatch: strides in elements, sizes, factors.
 * @param halves keys are scaled in f16: a factor over 1 would leave its range and scales the state in f32 instead (`stateScale`)
 * @param parts of each segment, each swept by workgroups of its own, multiples of `partStep` tokens
 */
export function sweepValues(
  sweep: Sweep,
  operands: { q?: Tensor | undefined; k: Tensor; v: Tensor; out?: Tensor | undefined },
  columnTiles: number,
  transposed: boolean,
  halves = false,
  parts = 1,
  partStep = 1,
): SweepValues {
  const { q, k, v, out } = operands;
  const { turns } = sweep;
  const stateScale = halves ? Math.max(1, Math.abs(sweep.keyScale)) : 1;
  return {
    tokens: sweep.tokens,
    tokensBefore: sweep.tokensBefore,
    heads: sweep.heads,
    segments: sweep.segments,
    segmentTokens: sweep.segmentTokens,
    columnTiles,
    parts,
    partStep,
    workgroups: parts * columnTiles * (sweep.ranges ? 1 : sweep.heads) * sweep.segments * sweep.batch,
    queryScale: sweep.queryScale,
    keyScale: sweep.keyScale / stateScale,
    stateScale,
    reverse: sweep.reverse ? 1 : 0,
    stateRow: transposed ? 1 : valueDimOf({ v, turns }),
    stateColumn: transposed ? keyDimOf({ k, turns }) : 1,
    ...strides.values({ q, k, v, out }),
  };
}
