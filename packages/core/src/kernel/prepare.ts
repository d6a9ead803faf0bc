import type { BindLayout } from '../device/bind-groups.js';
import { shaderStageCompute } from '../device/constants.js';
import type { Device, KernelTrace, Pipeline } from '../device/device.js';
import type { DType } from '../dtype.js';
import { HeedError } from '../errors.js';
import { type Binding, type ResolvedBinding, resolveBinding, type Spec } from './bindings.js';
import type { Bindings, KernelDefinition, Operands, Uniforms } from './definition.js';
import { type KernelSource, kernelWgsl } from './source.js';
import { layoutUniforms, type UniformLayout, type UniformType } from './uniforms.js';

/** One specialisation of a kernel, compiled. */
export interface Prepared {
  pipeline: Pipeline;
  layout: UniformLayout;
  bindings: readonly ResolvedBinding[];
}

/** Makes the text of one specialisation and its pipeline. */
export function compile<S extends Spec, B extends Bindings<S>, U extends Uniforms>(
  device: Device,
  definition: KernelDefinition<S, B, U>,
  spec: S,
  operands: Operands,
  key: string,
): Prepared {
  const { capabilities } = device;
  const bindings: ResolvedBinding[] = [];
  const dtypes: Record<string, DType> = {};
  for (const [index, name] of Object.keys(definition.bindings).entries()) {
    const binding = definition.bindings[name] as Binding<S>;
    if (binding.when && !binding.when(spec)) continue;
    const operand = operands[index];
    if (!operand) throw new Error(`kernel ${definition.name}: no tensor was given for binding "${name}"`);
    checkDType(definition.name, name, binding, operand.dtype);
    dtypes[name] = operand.dtype;
    bindings.push(resolveBinding(name, index, binding, operand.dtype, spec, capabilities.f16));
  }
  if (bindings.length > capabilities.limits.maxStorageBuffersPerShaderStage) {
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `core: kernel ${definition.name} binds ${bindings.length} buffers, this device allows ${capabilities.limits.maxStorageBuffersPerShaderStage}`,
    );
  }
  const layout = layoutUniforms(
    bindings.map((b) => b.offsetName),
    Object.entries<UniformType>(definition.uniforms),
  );
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
  const trace = { kernel: definition.name, tier, forms: definition.forms ?? [tier] };
  return { pipeline: createPipeline(device, trace, key, wgsl, bindings), layout, bindings };
}

function checkDType(kernel: string, name: string, binding: { type: string }, dtype: DType): void {
  const fits = binding.type === 'any' || binding.type === dtype || (binding.type === 'float' && (dtype === 'f32' || dtype === 'f16'));
  if (!fits)
    throw new HeedError(
      'DTYPE_MISMATCH',
      `core: kernel ${kernel} takes "${name}" as ${binding.type === 'float' ? 'f32 or f16' : binding.type}, got ${dtype}; cast it first`,
    );
}

function createPipeline(device: Device, trace: KernelTrace, key: string, wgsl: string, bindings: readonly ResolvedBinding[]): Pipeline {
  const { kernel: name, tier } = trace;
  const { gpu } = device;
  return device.guarded(`compiling kernel ${name}`, () => {
    const layout = bindLayout(device, bindings);
    const module = gpu.createShaderModule({ label: name, code: wgsl });
    const descriptor: GPUComputePipelineDescriptor = {
      label: name,
      layout: gpu.createPipelineLayout({ bindGroupLayouts: [layout.layout] }),
      compute: { module, entryPoint: 'main' },
    };
    const made: Pipeline = { name, key, wgsl, tier, trace, pipeline: undefined, layout, compileMs: undefined };
    device.compiling.add(made, descriptor);
    device.pipelines.set(key, made);
    return made;
  });
}

/** One layout for all kernels whose bindings are of the same kinds. */
function bindLayout(device: Device, bindings: readonly ResolvedBinding[]): BindLayout {
  const label = bindings.map((b) => (b.access === 'read' ? 'r' : 'w')).join('');
  const found = device.bindLayouts.get(label);
  if (found) return found;
  const layout = device.gpu.createBindGroupLayout({
    label,
    entries: [
      { binding: 0, visibility: shaderStageCompute, buffer: { type: 'uniform', hasDynamicOffset: true } },
      ...bindings.map((b, i) => ({
        binding: i + 1,
        visibility: shaderStageCompute,
        buffer: { type: (b.access === 'read' ? 'read-only-storage' : 'storage') as GPUBufferBindingType },
      })),
    ],
  });
  const made = { number: device.bindLayouts.size, layout };
  device.bindLayouts.set(label, made);
  return made;
}
