import type { Capabilities, Tensor } from '@heed/core';
import { asContiguous, fragmentLanes } from '@heed/core/~internal';
import { matrixLayout } from './matrix-tile.js';
import { outputLayout } from './output-layout.js';
import type { ScanPlan } from './plan.js';
import type { ScanTurns } from './sweep.js';
import { stepsEvenly } from './tile-turns.js';
import type { TurnForm } from './turn-text.js';

/** Queries and keys of a scan turned by position: on their way into a kernel on fragments, else as copies that do not outlive the scan. */
export interface Turning {
  form: TurnForm;
  /** f32 [heads, headDim] with `concat`, [floor(headDim / 2)] with `rotate`. */
  theta: Tensor;
  /** Position of the first token. */
  offset: number;
  /** Kernels of `layer/turns.ts`, which scans without positions do not carry. */
  kernels: TurnKernels;
}

export interface TurnKernels {
  /** x turned, from position `offset` on. */
  copy(x: Tensor, turning: Omit<Turning, 'kernels'>): Tensor;
  /** From dy, the gradient of turned x: that of x, written to `dx`, and that of theta, where they are wanted. */
  back(x: Tensor, dy: Tensor, turning: Omit<Turning, 'kernels'>, wanted: { dx: Tensor | undefined; angles: boolean }): Tensor | undefined;
}

/** The turns of a scan's operands `before` tokens further on, as they are loaded. */
export function turnsOf(turning: Turning, of: ScanTurns['of'], before = 0): ScanTurns {
  return { form: turning.form, theta: asContiguous(turning.theta), offset: turning.offset + before, of };
}

/** `turning` for a piece that begins `before` tokens further on. */
export function turningFrom(turning: Turning, before: number): Turning {
  return { ...turning, offset: turning.offset + before };
}

/** Most bindings of a kernel on fragments with angles. */
const mostBindings = 10;

/**
 * Whether the kernels of a plan turn operands as they load them: rows of whole eights, whose items lie evenly among the lanes.
 * @param headDim elements of a row before it is turned
 */
export function turnsOnLoad(
  { matrix }: Pick<ScanPlan, 'matrix'>,
  { of, headDim, keyDim }: { of: ScanTurns['of']; headDim: number; keyDim: number },
  { limits }: Capabilities,
): boolean {
  if (!matrix || headDim % 8 !== 0 || limits.maxStorageBuffersPerShaderStage < mostBindings) return false;
  return (['outputs', 'states'] as const).every((kernel) => {
    const tile = matrix[kernel];
    const { keys } = kernel === 'outputs' ? outputLayout(keyDim, tile) : matrixLayout(keyDim, tile, false);
    return stepsEvenly({ width: of === 'keys' ? keys : tile.columns, lanes: tile.rowGroups * tile.columnGroups * fragmentLanes });
  });
}
