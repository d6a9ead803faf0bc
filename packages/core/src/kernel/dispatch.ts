import type { Device, Pipeline } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import type { DType } from '../dtype.js';
import { formatBytes, HeedError } from '../errors.js';
import type { Operand, ResolvedBinding, Spec } from './bindings.js';
import type { Bindings, KernelDefinition, RunOptions, Uniforms } from './definition.js';
import { compile, type Prepared } from './prepare.js';
import { packUniforms } from './uniforms.js';

/** Records dispatches of one kernel, each specialisation compiled on its first use. */
export interface DirectKernel<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  /** Operands must have a dtype that the kernel's bindings store as they are. False where the grid is empty and nothing was recorded. */
  run(device: Device, options: RunOptions<S, B, U>): boolean;
}

/** A specialisation with what it was made for. */
interface Made extends Prepared {
  spec: Spec;
  /** Fields of the spec. */
  fields: number;
  /** A dtype for each declared binding. */
  dtypes: readonly (DType | undefined)[];
}

interface Cache {
  all: Map<string, Made>;
  /** The last few that ran, the newest first: comparing fields costs less than making a key. */
  recent: Made[];
}

const mostRecent = 6;
let kernels = 0;

/** A kernel without what `defineKernel` adds for dtypes that have no scalar store. */
export function directKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): DirectKernel<S, B, U> {
  const number = kernels++;
  const names = Object.keys(definition.bindings);

  function prepare(device: Device, spec: S, tensors: RunOptions<S, B, U>['tensors']): Prepared {
    const cache = (device.prepared[number] ??= { all: new Map(), recent: [] }) as Cache;
    const { recent } = cache;
    for (let i = 0; i < recent.length; i++) {
      const made = recent[i] as Made;
      if (!fits(made, spec, names, tensors)) continue;
      if (i > 0) {
        recent[i] = recent[0] as Made;
        recent[0] = made;
      }
      return made;
    }
    let key = definition.name;
    for (const name in spec) key += `|${name}=${String(spec[name])}`;
    for (const name of names) key += `|${tensors[name]?.dtype ?? '-'}`;
    let made = cache.all.get(key);
    if (!made) {
      const dtypes = names.map((name) => tensors[name]?.dtype);
      made = { ...compile(device, definition, spec, tensors, key), spec: { ...spec }, fields: Object.keys(spec).length, dtypes };
      cache.all.set(key, made);
    }
    recent.unshift(made);
    if (recent.length > mostRecent) recent.pop();
    return made;
  }

  function run(device: Device, { spec, tensors, uniforms, grid: wanted }: RunOptions<S, B, U>): boolean {
    const prepared = prepare(device, spec, tensors);
    const { entries, storages } = bind(device, definition.name, prepared, tensors);
    const grid = resolveGrid(device, definition.name, wanted, storages);
    if (grid === undefined) return false;
    const bindGroup = bindGroupFor(device, prepared.pipeline, entries, storages);
    const { recorder } = device;
    const uniformOffset = recorder.uniformSlot(prepared.layout.bytes);
    packUniforms(prepared.layout, uniforms, recorder, uniformOffset / 4);
    for (let i = 0; i < entries.length; i++)
      recorder.words[uniformOffset / 4 + (prepared.layout.offsets[i] as number)] = (entries[i] as Entry).item;
    device.dispatch(
      { kernel: definition.name, pipeline: prepared.pipeline.pipeline, bindGroup, uniformOffset, storages, grid },
      prepared.trace,
    );
    return true;
  }

  return { run };
}

function fits(made: Made, spec: Spec, names: readonly string[], tensors: Readonly<Record<string, Operand | undefined>>): boolean {
  for (let i = 0; i < names.length; i++) if (tensors[names[i] as string]?.dtype !== made.dtypes[i]) return false;
  let fields = 0;
  for (const name in spec) {
    if (spec[name] !== made.spec[name]) return false;
    fields++;
  }
  return fields === made.fields;
}

interface Entry {
  storage: Storage;
  /** The window of the buffer that is bound, in bytes. */
  offset: number;
  size: number;
  /** First item of the operand in the window. */
  item: number;
}

interface Bound {
  entries: readonly Entry[];
  storages: readonly Storage[];
}

function bind(device: Device, kernel: string, prepared: Prepared, tensors: Readonly<Record<string, Operand | undefined>>): Bound {
  const entries: Entry[] = [];
  const storages: Storage[] = [];
  const limit = device.limits.maxStorageBufferBindingSize;
  for (const b of prepared.bindings) {
    const operand = tensors[b.name];
    if (!operand) throw new Error(`kernel ${kernel}: no tensor was given for binding "${b.name}"`);
    const { storage, offset } = operand;
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
    storages.push(storage);
    entries.push(
      offset === 0 && storage.bytes <= limit
        ? { storage, offset: 0, size: storage.bytes, item: 0 }
        : windowOf(storage, operand, b, kernel, limit),
    );
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
  return { entries, storages };
}

/** Where in its buffer an operand is bound, and its first item there. */
function windowOf(storage: Storage, operand: Operand, b: ResolvedBinding, kernel: string, limit: number): Entry {
  const perElement = b.raw === undefined ? b.itemBytes / b.width : dtypeSize(operand.dtype);
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
  return { storage, offset: windowStart, size: windowSize, item: offsetBytes / item };
}

function shapeText({ shape }: Operand): string {
  return shape ? ` [${shape.join(', ')}]` : '';
}

function dtypeSize(dtype: DType): number {
  return dtype === 'f16' ? 2 : dtype === 'u8' ? 1 : 4;
}

function bindGroupFor(device: Device, pipeline: Pipeline, entries: readonly Entry[], storages: readonly Storage[]): GPUBindGroup {
  let key = pipeline.layoutKey;
  for (const { storage, offset, size } of entries)
    key += offset === 0 && size === storage.bytes ? `,${storage.id}` : `,${storage.id}:${offset}:${size}`;
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
