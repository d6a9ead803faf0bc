import type { BufferWindow } from '../device/bind-groups.js';
import type { Device } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import { dtypeBytes } from '../dtype.js';
import { formatBytes, HeedError } from '../errors.js';
import type { Operand, ResolvedBinding } from './bindings.js';

/** @throws HeedError INVALID_ARGUMENT for a buffer that is written and used beside */
export function checkApart(kernel: string, bindings: readonly ResolvedBinding[], storages: readonly Storage[]): void {
  for (let i = 0; i < bindings.length; i++) {
    if ((bindings[i] as ResolvedBinding).access === 'read') continue;
    for (let j = 0; j < bindings.length; j++) {
      if (i === j || storages[i] !== storages[j]) continue;
      throw new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} would write "${bindings[i]?.name}" and use "${bindings[j]?.name}" in one buffer; write to a tensor of its own`,
      );
    }
  }
}

/** What is wrong with an operand whose buffer is not alive on this device. */
export function unusable(device: Device, kernel: string, { name }: ResolvedBinding, operand: Operand): HeedError {
  const text = `"${operand.label ?? name}"${shapeText(operand)}`;
  return operand.storage.owner === device.pool
    ? new HeedError('DISPOSED', `core: kernel ${kernel} was given ${text}, which was disposed; keep it alive until its last use`)
    : new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} on "${device.report.name}" was given ${text} of another device; move it over by read() and tensor()`,
      );
}

/**
 * The part of a buffer that is bound where the buffer is larger than a binding may be.
 * @throws HeedError LIMIT_EXCEEDED where the operand alone is larger
 */
export function windowOf(operand: Operand, b: ResolvedBinding, kernel: string, limit: number): BufferWindow {
  const perElement = elementBytes(operand, b);
  const firstByte = operand.offset * perElement;
  const { bytes } = operand.storage;
  const offset = Math.floor(firstByte / 256) * 256;
  const spanBytes = firstByte - offset + operand.extent * perElement;
  const whole = Math.max(4, b.itemBytes); // an item that only begins in the binding would be lost
  const size = Math.min(Math.ceil(spanBytes / 256) * 256, bytes - offset, Math.floor(limit / whole) * whole);
  if (spanBytes > size) {
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `core: tensor "${operand.label ?? b.name}"${shapeText(operand)} needs a binding of ${formatBytes(spanBytes)} in ${kernel}, ` +
        `this device binds at most ${formatBytes(limit)}; split the batch or heads axis`,
    );
  }
  return { offset, size };
}

/**
 * The first item of an operand in its binding, which starts at `windowOffset` bytes of the buffer.
 * @throws HeedError SHAPE_MISMATCH for a view that starts within an item
 */
export function firstItem(operand: Operand, b: ResolvedBinding, kernel: string, windowOffset: number): number {
  const perElement = elementBytes(operand, b);
  const firstByte = operand.offset * perElement;
  // sub-word dtypes keep their element offset: loads address elements, not words
  const item = b.packed && b.raw === undefined && b.width === 1 ? perElement : b.itemBytes;
  if ((firstByte - windowOffset) % item !== 0) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `core: kernel ${kernel} reads "${operand.label ?? b.name}" in items of ${item} bytes, its view starts at byte ${firstByte}; make it contiguous first`,
    );
  }
  return (firstByte - windowOffset) / item;
}

function elementBytes(operand: Operand, b: ResolvedBinding): number {
  return b.raw === undefined ? b.itemBytes / b.width : dtypeBytes(operand.dtype);
}

function shapeText({ shape }: Operand): string {
  return shape ? ` [${shape.join(', ')}]` : '';
}
