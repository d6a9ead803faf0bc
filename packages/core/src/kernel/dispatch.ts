import type { Device, Pipeline } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import type { DType } from '../dtype.js';
import { formatBytes, HeedError } from '../errors.js';
import type { Operand, Spec } from './bindings.js';
import type { Bindings, KernelDefinition, RunOptions, Uniforms } from './definition.js';
import { compile, type Prepared } from './prepare.js';
import { packUniforms } from './uniforms.js';

/** Records dispatches of one kernel, each specialisation compiled on its first use. */
export interface DirectKernel<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  /** Operands must have a dtype that the kernel's bindings store as they are. False where the grid is empty and nothing was recorded. */
  run(device: Device, options: RunOptions<S, B, U>): boolean;
}

/** A kernel without what `defineKernel` adds for dtypes that have no scalar store. */
export function directKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): DirectKernel<S, B, U> {
  const caches = new WeakMap<Device, Map<string, Prepared>>();
  const names = Object.keys(definition.bindings);

  function prepare(device: Device, spec: S, tensors: RunOptions<S, B, U>['tensors']): Prepared {
    let cache = caches.get(device);
    if (!cache) caches.set(device, (cache = new Map()));
    let key = definition.name;
    for (const name in spec) key += `|${name}=${String(spec[name])}`;
    for (const name of names) key += `|${tensors[name]?.dtype ?? '-'}`;
    const found = cache.get(key);
    if (found) return found;
    const made = compile(device, definition, spec, tensors, key);
    cache.set(key, made);
    return made;
  }

  function run(device: Device, { spec, tensors, uniforms, grid: wanted }: RunOptions<S, B, U>): boolean {
    const prepared = prepare(device, spec, tensors);
    const { values, entries, storages } = bind(device, definition.name, prepared, tensors, uniforms);
    const grid = resolveGrid(device, definition.name, wanted, storages);
    if (grid === undefined) return false;
    const bindGroup = bindGroupFor(device, prepared.pipeline, entries, storages);
    const uniformOffset = device.recorder.uniformSlot(prepared.layout.bytes);
    packUniforms(prepared.layout, values, device.recorder.uniforms, uniformOffset);
    device.dispatch(
      { kernel: definition.name, pipeline: prepared.pipeline.pipeline, bindGroup, uniformOffset, storages, grid },
      prepared.trace,
    );
    return true;
  }

  return { run };
}

interface Bound {
  values: Record<string, number | readonly number[]>;
  entries: { storage: Storage; offset: number; size: number }[];
  storages: Storage[];
}

function bind(
  device: Device,
  kernel: string,
  prepared: Prepared,
  tensors: Readonly<Record<string, Operand | undefined>>,
  uniforms: Readonly<Record<string, number | readonly number[]>>,
): Bound {
  const values: Record<string, number | readonly number[]> = { ...uniforms };
  const entries: Bound['entries'] = [];
  const storages: Storage[] = [];
  const limit = device.limits.maxStorageBufferBindingSize;
  for (const b of prepared.bindings) {
    const operand = tensors[b.name];
    if (!operand) throw new Error(`kernel ${kernel}: no tensor was given for binding "${b.name}"`);
    const { storage } = operand;
    if (storage.owner !== device.pool) {
      // ids of buffers repeat between devices: without this a cached bind group of another buffer would be found
      throw new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} on "${device.report.name}" was given "${operand.label ?? b.name}"${shapeText(operand)} of another device; move it over by read() and tensor()`,
      );
    }
    if (storage.destroyed || storage.references <= 0) {
      throw new HeedError(
        'DISPOSED',
        `core: kernel ${kernel} was given "${operand.label ?? b.name}", which was disposed; keep it alive until its last use`,
      );
    }
    const elementBytes = b.itemBytes / (b.raw === undefined ? b.width : 1);
    const perElement = b.raw === undefined ? elementBytes : dtypeSize(operand.dtype);
    const firstByte = operand.offset * perElement;
    let windowStart = 0;
    let windowSize = storage.bytes;
    if (storage.bytes > limit) {
      windowStart = Math.floor(firstByte / 256) * 256;
      const spanBytes = firstByte - windowStart + operand.extent * perElement;
      windowSize = Math.min(Math.ceil(spanBytes / 256) * 256, storage.bytes - windowStart, Math.floor(limit / 4) * 4);
      if (spanBytes > windowSize) {
        throw new HeedError(
          'LIMIT_EXCEEDED',
          `core: tensor "${operand.label ?? b.name}"${shapeText(operand)} needs a binding of ${formatBytes(spanBytes)} in ${kernel}, ` +
            `this device binds at most ${formatBytes(limit)}; split the batch or heads axis`,
        );
      }
    }
    const offsetBytes = firstByte - windowStart;
    // sub-word dtypes keep their element offset: loads address elements, not words
    const item = b.packed && b.raw === undefined && b.width === 1 ? perElement : b.itemBytes;
    if (offsetBytes % item !== 0) {
      throw new HeedError(
        'SHAPE_MISMATCH',
        `core: kernel ${kernel} reads "${operand.label ?? b.name}" in items of ${item} bytes, its view starts at byte ${firstByte}; make it contiguous first`,
      );
    }
    values[b.offsetName] = offsetBytes / item;
    entries.push({ storage, offset: windowStart, size: windowSize });
    storages.push(storage);
  }
  for (let i = 0; i < storages.length; i++) {
    if (prepared.bindings[i]?.access === 'read') continue;
    for (let j = 0; j < storages.length; j++) {
      if (i !== j && storages[i] === storages[j]) {
        throw new HeedError(
          'INVALID_ARGUMENT',
          `core: kernel ${kernel} would write "${prepared.bindings[i]?.name}" and use "${prepared.bindings[j]?.name}" in one buffer; write to a tensor of its own`,
        );
      }
    }
  }
  return { values, entries, storages };
}

function shapeText({ shape }: Operand): string {
  return shape ? ` [${shape.join(', ')}]` : '';
}

function dtypeSize(dtype: DType): number {
  return dtype === 'f16' ? 2 : dtype === 'u8' ? 1 : 4;
}

function bindGroupFor(device: Device, pipeline: Pipeline, entries: Bound['entries'], storages: readonly Storage[]): GPUBindGroup {
  let key = pipeline.layoutKey;
  for (const e of entries) key += `,${e.storage.id}:${e.offset}:${e.size}`;
  const found = device.bindGroups.get(key);
  if (found) return found.group;
  const group = device.guarded(`binding ${pipeline.name}`, () =>
    device.gpu.createBindGroup({
      label: pipeline.name,
      layout: pipeline.layout,
      entries: [
        { binding: 0, resource: { buffer: device.recorder.uniformBuffer, size: 1024 } },
        ...entries.map((e, i) => ({ binding: i + 1, resource: { buffer: e.storage.buffer, offset: e.offset, size: e.size } })),
      ],
    }),
  );
  device.limitBindGroups(8192);
  device.bindGroups.set(key, { group, storages });
  for (const storage of storages) storage.bindGroups.add(key);
  return group;
}

function resolveGrid(
  device: Device,
  kernel: string,
  grid: readonly number[] | { indirect: Operand; byteOffset?: number },
  storages: readonly Storage[],
): readonly [number, number, number] | { indirect: Storage; byteOffset: number } | undefined {
  if ('indirect' in grid) {
    if (storages.includes(grid.indirect.storage)) {
      throw new HeedError(
        'INVALID_ARGUMENT',
        `core: kernel ${kernel} would bind the buffer that its indirect count lies in; keep counts in a buffer of their own`,
      );
    }
    return { indirect: grid.indirect.storage, byteOffset: grid.indirect.offset * 4 + (grid.byteOffset ?? 0) };
  }
  const limit = device.limits.maxComputeWorkgroupsPerDimension;
  const [first = 1, second = 1, z = 1] = grid;
  let [x, y] = [first, second];
  if (x === 0 || y === 0 || z === 0) return undefined;
  if (grid.length === 1 && x > limit) {
    y = Math.ceil(x / limit);
    x = Math.ceil(x / y);
  }
  if (x > limit || y > limit || z > limit || ![x, y, z].every(Number.isInteger)) {
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `core: kernel ${kernel} needs a grid of ${x} x ${y} x ${z} workgroups, this device allows ${limit} in each direction; split the batch`,
    );
  }
  return [x, y, z];
}
