import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import { type Binding, type Operand, resolveBinding, type Spec } from './bindings.js';
import type { Bindings, Kernel, KernelDefinition, Uniforms } from './definition.js';
import { KernelRunner } from './dispatch.js';
import { packF16, packU8 } from './pack.js';

export type { Kernel, KernelContext, KernelDefinition, RunOptions } from './definition.js';

/**
 * Defines a kernel. Nothing happens at import: text and pipeline are made on the first run of each specialisation.
 */
export function defineKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): Kernel<S, B, U> {
  const names = Object.keys(definition.bindings);
  const outputs = names.map((_, index) => index).filter((index) => definition.bindings[names[index] as string]?.access !== 'read');

  function isPacked(device: Device, spec: S, index: number, operand: Operand | undefined): operand is Operand {
    const name = names[index] as string;
    return operand !== undefined && writesElements(device, name, definition.bindings[name] as Binding<S>, operand, spec);
  }

  return new KernelRunner(definition, {
    needed: (device, spec, operands) => outputs.some((index) => isPacked(device, spec, index, operands[index])),
    run: (kernel, device, spec, operands, values, grid) => {
      const own = [...operands];
      const temporary: TemporaryOutput[] = [];
      for (const index of outputs) {
        const operand = operands[index];
        if (!isPacked(device, spec, index, operand)) continue;
        const storage = device.allocate(operand.extent * 4, `${names[index]} before packing`);
        const { extent, label } = operand;
        own[index] = { storage, dtype: operand.dtype === 'f16' ? 'f32' : 'u32', offset: 0, extent, label };
        temporary.push({ operand: own[index], target: operand });
      }
      try {
        const ran = kernel.runListed(device, spec, own, values, grid);
        for (const t of temporary) if (ran) (t.target.dtype === 'f16' ? packF16 : packU8)(device, t.operand, t.target);
        return ran;
      } finally {
        for (const t of temporary) device.pool.release(t.operand.storage);
      }
    },
  });
}

/** Whether single elements of the operand's dtype can be stored on the device: u8 never, f16 with shader-f16. */
function hasStore(device: Device, { dtype }: Operand): boolean {
  return dtype !== 'u8' && (dtype !== 'f16' || device.capabilities.f16);
}

interface TemporaryOutput {
  operand: Operand;
  target: Operand;
}

/**
 * Where a dtype has no scalar store, a kernel that writes single elements writes f32 or u32 to a temporary, and one packing dispatch
 * follows. @throws HeedError UNSUPPORTED for an operand that is read, too
 */
function writesElements<S extends Spec>(device: Device, name: string, binding: Binding<S>, operand: Operand, spec: S): boolean {
  if (hasStore(device, operand)) return false;
  const { width, raw } = resolveBinding(name, 0, binding, operand.dtype, spec, device.capabilities.f16);
  if (width !== 1 || raw !== undefined) return false;
  if (binding.access === 'write') return true;
  throw new HeedError(
    'UNSUPPORTED',
    `core: kernel binding "${name}" is updated in place as ${operand.dtype}, which has no scalar store on this device; use f32`,
  );
}
