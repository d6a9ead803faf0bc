import { shaderStageCompute } from '../device/constants.js';
import type { Capabilities, Tier } from '../device/capabilities.js';
import type { Device, KernelTrace, Pipeline } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import { formatBytes, HeedError } from '../errors.js';
import type { DType } from '../dtype.js';
import { type Binding, type Operand, type ResolvedBinding, resolveBinding, type Spec } from './bindings.js';
import { packF16, packU8 } from './pack.js';
import { type KernelSource, kernelWgsl } from './source.js';
import { layoutUniforms, packUniforms, type UniformLayout, type UniformType, type UniformValue } from './uniforms.js';
import type { WgslModule } from './modules.js';

type Bindings<S extends Spec> = Readonly<Record<string, Binding<S>>>;
type Uniforms = Readonly<Record<string, UniformType>>;

/** What a kernel's text may depend on besides its spec: the dtypes of its operands and the device's capabilities. */
export interface KernelContext {
  capabilities: Capabilities;
  dtypes: Readonly<Record<string, DType>>;
}

/** A kernel: a function from specialisation values to WGSL, with typed bindings and run-time values. */
export interface KernelDefinition<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  /** A noun for what it computes: `softmax-rows`. */
  name: string;
  /** At most 8 storage bindings on `baseline`. They are bound in this order, from binding 1. */
  bindings: B;
  /** Run-time values: lengths, strides, batch. In WGSL `uniforms.<name>`. */
  uniforms: U;
  /** Shared WGSL that the text uses. */
  modules?: readonly WgslModule[] | ((spec: S) => readonly WgslModule[]);
  /** The text: workgroup variables, functions, and `@compute ... fn main`. */
  wgsl: (spec: S, context: KernelContext) => string;
  /** The tier that this form needs; a function of the spec where forms share a definition. Default `baseline`. */
  tier?: Tier | ((spec: S) => Tier);
  /** The tiers that this computation has forms for, this one included. Default: only `tier`. */
  forms?: readonly Tier[];
}

export interface RunOptions<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  spec: S;
  tensors: { readonly [K in keyof B]?: Operand | undefined };
  uniforms: { readonly [K in keyof U]: UniformValue<U[K]> };
  /**
   * Workgroups. `[n]` alone folds over 65,535 into y: such kernels compute their index by `workgroupIndex(group, groups)`.
   * Or the place of three u32 in a buffer that an earlier dispatch wrote.
   */
  grid: readonly number[] | { indirect: Operand; byteOffset?: number };
}

export interface Kernel<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  readonly name: string;
  /** Records one dispatch. */
  run(device: Device, options: RunOptions<S, B, U>): void;
}

interface Prepared {
  pipeline: Pipeline;
  layout: UniformLayout;
  bindings: readonly ResolvedBinding[];
  trace: KernelTrace;
}

/**
 * Defines a kernel. Nothing happens at import: text and pipeline are made on the first run of each specialisation.
 */
export function defineKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): Kernel<S, B, U> {
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

  function run(device: Device, options: RunOptions<S, B, U>): void {
    const temporary = packedOutputs(device, definition.bindings, options);
    const tensors =
      temporary.length === 0 ? options.tensors : { ...options.tensors, ...Object.fromEntries(temporary.map((t) => [t.name, t.operand])) };
    const prepared = prepare(device, options.spec, tensors);
    const { values, entries, storages } = bind(device, definition.name, prepared, tensors, options.uniforms);
    const grid = resolveGrid(device, definition.name, options.grid, storages);
    if (grid === undefined) {
      for (const t of temporary) device.pool.release(t.operand.storage);
      return;
    }
    const bindGroup = bindGroupFor(device, prepared.pipeline, entries, storages);
    const uniformOffset = device.recorder.uniformSlot(prepared.layout.bytes);
    packUniforms(prepared.layout, values, device.recorder.uniforms, uniformOffset);
    device.dispatch(
      {
        kernel: definition.name,
        pipeline: prepared.pipeline.pipeline,
        bindGroup,
        uniformOffset,
        storages,
        grid,
      },
      prepared.trace,
    );
    for (const t of temporary) {
      (t.target.dtype === 'f16' ? packF16 : packU8)(device, t.operand, t.target);
      device.pool.release(t.operand.storage);
    }
  }

  return { name: definition.name, run };
}

interface TemporaryOutput {
  name: string;
  operand: Operand;
  target: Operand;
}

/**
 * Where a dtype has no scalar store (f16 without shader-f16, u8), a kernel that writes single elements writes f32 or u32
 * to a temporary, and one packing dispatch follows.
 */
function packedOutputs<S extends Spec, B extends Bindings<S>, U extends Uniforms>(
  device: Device,
  bindings: B,
  options: RunOptions<S, B, U>,
): TemporaryOutput[] {
  const list: TemporaryOutput[] = [];
  for (const name in bindings) {
    const binding = bindings[name] as Binding<S>;
    const operand = options.tensors[name];
    if (binding.access === 'read' || !operand) continue;
    if (!(operand.dtype === 'u8' || (operand.dtype === 'f16' && !device.capabilities.f16))) continue;
    const resolved = resolveBinding(name, binding, operand.dtype, options.spec, device.capabilities.f16);
    if (resolved.width !== 1 || resolved.raw !== undefined) continue;
    if (binding.access !== 'write')
      throw new HeedError(
        'UNSUPPORTED',
        `core: kernel binding "${name}" is updated in place as ${operand.dtype}, which has no scalar store on this device; use f32`,
      );
    const storage = device.allocate(operand.extent * 4, `${name} before packing`);
    list.push({
      name,
      operand: { storage, dtype: operand.dtype === 'f16' ? 'f32' : 'u32', offset: 0, extent: operand.extent, label: operand.label },
      target: operand,
    });
  }
  return list;
}

function compile<S extends Spec, B extends Bindings<S>, U extends Uniforms>(
  device: Device,
  definition: KernelDefinition<S, B, U>,
  spec: S,
  tensors: RunOptions<S, B, U>['tensors'],
  key: string,
): Prepared {
  const { capabilities } = device;
  const bindings: ResolvedBinding[] = [];
  const dtypes: Record<string, DType> = {};
  for (const name of Object.keys(definition.bindings)) {
    const binding = definition.bindings[name] as Binding<S>;
    if (binding.when && !binding.when(spec)) continue;
    const operand = tensors[name];
    if (!operand) throw new Error(`kernel ${definition.name}: no tensor was given for binding "${name}"`);
    checkDType(definition.name, name, binding, operand.dtype);
    dtypes[name] = operand.dtype;
    bindings.push(resolveBinding(name, binding, operand.dtype, spec, capabilities.f16));
  }
  if (bindings.length > capabilities.limits.maxStorageBuffersPerShaderStage) {
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `core: kernel ${definition.name} binds ${bindings.length} buffers, this device allows ${capabilities.limits.maxStorageBuffersPerShaderStage}`,
    );
  }
  const uniformFields: [string, UniformType][] = bindings.map((b) => [b.offsetName, 'u32']);
  for (const name of Object.keys(definition.uniforms)) uniformFields.push([name, definition.uniforms[name] as UniformType]);
  const layout = layoutUniforms(uniformFields);
  const tier = typeof definition.tier === 'function' ? definition.tier(spec) : (definition.tier ?? 'baseline');
  const modules = typeof definition.modules === 'function' ? definition.modules(spec) : (definition.modules ?? []);
  const source: KernelSource = {
    name: definition.name,
    body: definition.wgsl(spec, { capabilities, dtypes }),
    bindings,
    uniforms: layout,
    modules,
    matrix: tier === 'matrix' && capabilities.matrix === 'hardware',
    capabilities,
  };
  const wgsl = kernelWgsl(source);
  const pipeline = createPipeline(device, definition.name, key, wgsl, tier, bindings);
  return { pipeline, layout, bindings, trace: { kernel: definition.name, tier, forms: definition.forms ?? [tier] } };
}

function checkDType(kernel: string, name: string, binding: { type: string }, dtype: DType): void {
  const fits = binding.type === 'any' || binding.type === dtype || (binding.type === 'float' && (dtype === 'f32' || dtype === 'f16'));
  if (!fits)
    throw new HeedError(
      'DTYPE_MISMATCH',
      `core: kernel ${kernel} takes "${name}" as ${binding.type === 'float' ? 'f32 or f16' : binding.type}, got ${dtype}; cast it first`,
    );
}

function createPipeline(
  device: Device,
  name: string,
  key: string,
  wgsl: string,
  tier: Tier,
  bindings: readonly ResolvedBinding[],
): Pipeline {
  const layoutKey = bindings.map((b) => (b.access === 'read' ? 'r' : 'w')).join('');
  const { gpu } = device;
  return device.guarded(`compiling kernel ${name}`, () => {
    let layout = device.bindGroupLayouts.get(layoutKey);
    if (!layout) {
      layout = gpu.createBindGroupLayout({
        label: layoutKey,
        entries: [
          { binding: 0, visibility: shaderStageCompute, buffer: { type: 'uniform', hasDynamicOffset: true } },
          ...bindings.map((b, i) => ({
            binding: i + 1,
            visibility: shaderStageCompute,
            buffer: { type: (b.access === 'read' ? 'read-only-storage' : 'storage') as GPUBufferBindingType },
          })),
        ],
      });
      device.bindGroupLayouts.set(layoutKey, layout);
    }
    const module = gpu.createShaderModule({ label: name, code: wgsl });
    const descriptor: GPUComputePipelineDescriptor = {
      label: name,
      layout: gpu.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: 'main' },
    };
    const started = performance.now();
    const made: Pipeline = { name, key, wgsl, tier, pipeline: gpu.createComputePipeline(descriptor), layout, layoutKey };
    made.compileMs = performance.now() - started;
    device.pipelines.set(key, made);
    return made;
  });
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
          `core: tensor "${operand.label ?? b.name}"${operand.shape ? ` [${operand.shape.join(', ')}]` : ''} needs a binding of ${formatBytes(spanBytes)} in ${kernel}, ` +
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

function dtypeSize(dtype: DType): number {
  return dtype === 'f16' ? 2 : dtype === 'u8' ? 1 : 4;
}

function bindGroupFor(device: Device, pipeline: Pipeline, entries: Bound['entries'], storages: readonly Storage[]): GPUBindGroup {
  let key = pipeline.layoutKey;
  for (const e of entries) key += `,${e.storage.id}:${e.offset}:${e.size}`;
  const found = device.bindGroups.get(key);
  if (found) return found;
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
  device.bindGroups.set(key, group);
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
  let [x = 1, y = 1, z = 1] = grid;
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
