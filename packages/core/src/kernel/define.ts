import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import { type Binding, type Operand, resolveBinding, type Spec } from './bindings.js';
import type { Bindings, Kernel, KernelDefinition, RunOptions, Uniforms } from './definition.js';
import { directKernel } from './dispatch.js';
import { packF16, packU8 } from './pack.js';

export type { Kernel, KernelContext, KernelDefinition, RunOptions } from './definition.js';

/**
 * Defines a kernel. Nothing happens at import: text and pipeline are made on the first run of each specialisation.
 */
export function defineKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): Kernel<S, B, U> {
  const direct = directKernel(definition);
  const outputs = Object.keys(definition.bindings).filter((name) => definition.bindings[name]?.access !== 'read');

  function run(device: Device, options: RunOptions<S, B, U>): void {
    const temporary = packedOutputs(device, definition.bindings, outputs, options);
    if (temporary === undefined) {
      direct.run(device, options);
      return;
    }
    const tensors = { ...options.tensors, ...Object.fromEntries(temporary.map((t) => [t.name, t.operand])) };
    try {
      const ran = direct.run(device, { ...options, tensors });
      for (const t of temporary) if (ran) (t.target.dtype === 'f16' ? packF16 : packU8)(device, t.operand, t.target);
    } finally {
      for (const t of temporary) device.pool.release(t.operand.storage);
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
  outputs: readonly string[],
  options: RunOptions<S, B, U>,
): TemporaryOutput[] | undefined {
  let list: TemporaryOutput[] | undefined;
  for (let i = 0; i < outputs.length; i++) {
    const name = outputs[i] as string;
    const operand = options.tensors[name];
    if (!operand || !(operand.dtype === 'u8' || (operand.dtype === 'f16' && !device.capabilities.f16))) continue;
    const binding = bindings[name] as Binding<S>;
    const resolved = resolveBinding(name, binding, operand.dtype, options.spec, device.capabilities.f16);
    if (resolved.width !== 1 || resolved.raw !== undefined) continue;
    if (binding.access !== 'write')
      throw new HeedError(
        'UNSUPPORTED',
        `core: kernel binding "${name}" is updated in place as ${operand.dtype}, which has no scalar store on this device; use f32`,
      );
    const storage = device.allocate(operand.extent * 4, `${name} before packing`);
    (list ??= []).push({
      name,
      operand: { storage, dtype: operand.dtype === 'f16' ? 'f32' : 'u32', offset: 0, extent: operand.extent, label: operand.label },
      target: operand,
    });
  }
  return list;
}
