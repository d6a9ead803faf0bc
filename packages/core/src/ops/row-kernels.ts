import type { Capabilities } from '../device/capabilities.js';
import { type LaneForm, laneForm, lanesFor } from '../kernel/wgsl/lanes.js';

// What kernels share that work on whole rows of the last axis: 256 lanes a workgroup, `lanes` of them a row.

export interface RowSpec {
  [name: string]: string | number | boolean;
  /** Elements an item, 4 where rows start at multiples of 4. */
  width: number;
  lanes: number;
  form: LaneForm;
}

/** How rows of `n` elements are taken. Pure. */
export function rowSpec(n: number, aligned: boolean, capabilities: Capabilities): RowSpec {
  const width = aligned && n % 4 === 0 ? 4 : 1;
  const lanes = lanesFor(n / width);
  return { width, lanes, form: laneForm(lanes, capabilities) };
}

/** Workgroups for so many rows. */
export function rowGrid(rows: number, lanes: number): number[] {
  return [Math.ceil((rows * lanes) / 256)];
}

/** `vec4f` or `f32`. */
export function itemType(width: number): string {
  return width === 4 ? 'vec4f' : 'f32';
}

/** The sum of an item's elements. */
export function itemSum(width: number, item: string): string {
  return width === 4 ? `dot(${item}, vec4f(1.0))` : item;
}
