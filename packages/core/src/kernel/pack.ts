import type { Device } from '../device/device.js';
import { type Operand, read, write } from './bindings.js';
import { KernelRunner } from './dispatch.js';

// Packs single f32 values to f16 pairs, or u32 values to u8 quadruples: the second half of a kernel that writes single
// elements of a dtype without a scalar store.
// tile    4 elements a lane, 256 lanes
// bytes   reads 4 a element, writes 2 or 1 a element
// limits  the target starts at a multiple of 4 elements
const kernel = new KernelRunner({
  name: 'pack',
  bindings: { x: read('any', { width: 4 }), out: write('any', { width: 4 }) },
  uniforms: { items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { store_out(i, load_x(i)); }
    }`,
});

function pack(device: Device, from: Operand, to: Operand): void {
  const items = Math.ceil(from.extent / 4);
  kernel.runListed(device, { to: to.dtype }, [from, to], [items], [Math.ceil(items / 256)]);
}

/** f32 -> f16, rounded to nearest. */
export function packF16(device: Device, from: Operand, to: Operand): void {
  pack(device, from, to);
}

/** u32 -> u8, the lowest byte. */
export function packU8(device: Device, from: Operand, to: Operand): void {
  pack(device, from, to);
}
