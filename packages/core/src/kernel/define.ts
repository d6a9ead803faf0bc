import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import { type Binding, type Operand, resolveBinding, type Spec } from './bindings.js';
import type { Bindings, Kernel, KernelDefinition, Operands, Uniforms, UniformValues } from './definition.js';
import { directKernel } from './dispatch.js';
import type { WantedGrid } from './grid.js';
import { packF16, packU8 } from './pack.js';

export type { Kernel, KernelContext, KernelDefinition, RunOptions } from './definition.js';

/**
 * Defines a kernel. Nothing happens at import: text and pipeline are made on the first run of each specialisation.
 */
export function defineKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): Kernel<S, B, U> {
  const direct = directKernel(definition);
  const names = Object.keys(definition.bindings);
  const uniformNames = Object.keys(definition.uniforms);
  const outputs = names.map((_, index) => index).filter((index) => definition.bindings[names[index] as string]?.access !== 'read');

  function runListed(device: Device, spec: S, operands: Operands, values: UniformValues, grid: WantedGrid): void {
    for (let i = 0; i < outputs.length; i++) {
      const operand = operands[outputs[i] as number];
      if (!operand || operand.dtype === 'f32' || hasStore(device, operand)) continue;
      runPacked(device, spec, operands, values, grid);
      return;
    }
    direct.run(device, spec, operands, values, grid);
  }

  function runPacked(device: Device, spec: S, operands: Operands, values: UniformValues, grid: WantedGrid): void {
    const own = [...operands];
    const temporary: TemporaryOutput[] = [];
    for (const index of outputs) {
      const operand = operands[index];
      const name = names[index] as string;
      if (!operand || !writesElements(device, name, definition.bindings[name] as Binding<S>, operand, spec)) continue;
      const storage = device.allocate(operand.extent * 4, `${name} before packing`);
      const { extent, label } = operand;
      own[index] = { storage, dtype: operand.dtype === 'f16' ? 'f32' : 'u32', offset: 0, extent, label };
      temporary.push({ operand: own[index], target: operand });
    }
    try {
      const ran = direct.run(device, spec, own, values, grid);
      for (const t of temporary) if (ran) (t.target.dtype === 'f16' ? packF16 : packU8)(device, t.operand, t.target);
    } finally {
      for (const t of temporary) device.pool.release(t.operand.storage);
    }
  }

  return {
    name: definition.name,
    run: (device, { spec, tensors, uniforms, grid }) =>
      runListed(device, spec, listed(names, tensors), listed(uniformNames, uniforms), grid),
    runListed,
  };
}

/** Values of a record in the order of `names`. */
function listed<T>(names: readonly string[], values: Readonly<Record<string, T | undefined>>): (T | undefined)[] {
  const list = new Array<T | undefined>(names.length);
  for (let i = 0; i < names.length; i++) list[i] = values[names[i] as string];
  return list;
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
