import type { BufferWindow } from '../device/bind-groups.js';
import type { Device } from '../device/device.js';
import { dtypeBytes } from '../dtype.js';
import { formatBytes, HeedError } from '../errors.js';
import type { Operand, ResolvedBinding } from './bindings.js';
import type { Operands } from './definition.js';

/** A binding of one run: the window of a buffer, and the operand's first item in it. */
export interface Place extends BufferWindow {
  item: number;
}

/**
 * Finds where each operand is bound. `places` is filled anew at each run, an entry a binding, so that a dispatch makes no objects.
 * @throws HeedError INVALID_ARGUMENT for an operand of another device or a buffer that is written and used beside,
 *   DISPOSED, LIMIT_EXCEEDED, SHAPE_MISMATCH for a view that starts within an item
 */
export function bindOperands(
  device: Device,
  kernel: string,
  bindings: readonly ResolvedBinding[],
  operands: Operands,
  places: Place[],
): void {
  const limit = device.limits.maxStorageBufferBindingSize;
  for (let i = 0; i < bindings.length; i++) {
    const binding = bindings[i] as ResolvedBinding;
    const operand = operands[binding.index];
    if (!operand) throw new Error(`kernel ${kernel}: no tensor was given for binding "${binding.name}"`);
    const { storage } = operand;
    if (storage.owner !== device.pool || storage.destroyed || storage.references <= 0) throw unusable(device, kernel, binding, operand);
    const place = (places[i] ??= { storage, offset: 0, size: 0, item: 0 });
    place.storage = storage;
    place.offset = 0;
    place.size = storage.bytes;
    place.item = 0;
    if (operand.offset !== 0 || storage.bytes > limit) placeWindow(place, operand, binding, kernel, limit);
  }
  for (let i = 0; i < bindings.length; i++) {
    if ((bindings[i] as ResolvedBinding).access === 'read') continue;
    const { storage } = places[i] as Place;
    for (let j = 0; j < bindings.length; j++) {
      if (i === j || storage !== (places[j] as Place).storage) continue;
      throw new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} would write "${bindings[i]?.name}" and use "${bindings[j]?.name}" in one buffer; write to a tensor of its own`,
      );
    }
  }
}

function unusable(device: Device, kernel: string, { name }: ResolvedBinding, operand: Operand): HeedError {
  const text = `"${operand.label ?? name}"${shapeText(operand)}`;
  return operand.storage.owner === device.pool
    ? new HeedError('DISPOSED', `core: kernel ${kernel} was given ${text}, which was disposed; keep it alive until its last use`)
    : new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} on "${device.report.name}" was given ${text} of another device; move it over by read() and tensor()`,
      );
}

/** Where in its buffer a view is bound, and its first item there. */
function placeWindow(place: Place, operand: Operand, b: ResolvedBinding, kernel: string, limit: number): void {
  const { storage } = place;
  const perElement = b.raw === undefined ? b.itemBytes / b.width : dtypeBytes(operand.dtype);
  const firstByte = operand.offset * perElement;
  if (storage.bytes > limit) {
    place.offset = Math.floor(firstByte / 256) * 256;
    const spanBytes = firstByte - place.offset + operand.extent * perElement;
    place.size = Math.min(Math.ceil(spanBytes / 256) * 256, storage.bytes - place.offset, Math.floor(limit / 4) * 4);
    if (spanBytes > place.size) {
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `core: tensor "${operand.label ?? b.name}"${shapeText(operand)} needs a binding of ${formatBytes(spanBytes)} in ${kernel}, ` +
          `this device binds at most ${formatBytes(limit)}; split the batch or heads axis`,
      );
    }
  }
  const offsetBytes = firstByte - place.offset;
  // sub-word dtypes keep their element offset: loads address elements, not words
  const item = b.packed && b.raw === undefined && b.width === 1 ? perElement : b.itemBytes;
  if (offsetBytes % item !== 0) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `core: kernel ${kernel} reads "${operand.label ?? b.name}" in items of ${item} bytes, its view starts at byte ${firstByte}; make it contiguous first`,
    );
  }
  place.item = offsetBytes / item;
}

function shapeText({ shape }: Operand): string {
  return shape ? ` [${shape.join(', ')}]` : '';
}
