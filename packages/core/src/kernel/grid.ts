import type { Device } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import type { Grid } from '../device/recorder.js';
import { HeedError } from '../errors.js';
import type { Operand } from './bindings.js';

/** Workgroups along x, y and z (1 where left out), or the place of three u32 in a buffer that an earlier dispatch wrote. */
export type WantedGrid = readonly number[] | { indirect: Operand; byteOffset?: number; length?: undefined };

/**
 * The grid as the device takes it: one number over its limit folds into y. Undefined where there is nothing to run.
 * @param bound the buffers that the dispatch binds
 * @throws HeedError LIMIT_EXCEEDED, INVALID_ARGUMENT where an indirect count lies in a buffer that is bound
 */
export function resolveGrid(device: Device, kernel: string, grid: WantedGrid, bound: readonly Storage[]): Grid | undefined {
  if (grid.length === 1) {
    const x = grid[0] as number;
    if (x > 0 && x <= device.limits.maxComputeWorkgroupsPerDimension && x % 1 === 0) return grid;
  }
  return unusualGrid(device, kernel, grid, bound);
}

function unusualGrid(device: Device, kernel: string, grid: WantedGrid, bound: readonly Storage[]): Grid | undefined {
  if (grid.length === undefined) {
    const { storage, offset } = grid.indirect;
    if (bound.includes(storage)) {
      throw new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} would bind the buffer that its indirect count lies in; keep counts in a buffer of their own`,
      );
    }
    return { indirect: storage, byteOffset: offset * 4 + (grid.byteOffset ?? 0) };
  }
  const limit = device.limits.maxComputeWorkgroupsPerDimension;
  const x = grid[0] ?? 1;
  const y = grid[1] ?? 1;
  const z = grid[2] ?? 1;
  if (x === 0 || y === 0 || z === 0) return undefined;
  const whole = Number.isInteger(x) && Number.isInteger(y) && Number.isInteger(z);
  if (whole && x <= limit && y <= limit && z <= limit) return grid;
  const rows = Math.ceil(x / limit);
  if (whole && grid.length === 1 && rows <= limit) return [Math.ceil(x / rows), rows];
  throw new HeedError(
    'LIMIT_EXCEEDED',
    `core: kernel ${kernel} needs a grid of ${x} x ${y} x ${z} workgroups, this device allows ${limit} in each direction; split the batch`,
  );
}
