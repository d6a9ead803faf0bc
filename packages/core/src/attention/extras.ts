import { dtypeBytes } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import type { Device } from '../device/device.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

type PackSpec = {
  /** Elements of 32 bits are copied as they are, infinities included; f16 is widened to f32. */
  words: boolean;
};

// Copies values into a buffer of 32-bit words, f16 widened to f32: how small arrays share one binding.
// tile    1 element a lane, 256 lanes
// bytes   reads one element, writes 4 each
const packWords = defineKernel({
  name: 'attention-extras',
  bindings: { x: read<PackSpec>('any', { raw: (s) => (s.words ? 'u32' : undefined) }), out: write('any', { raw: 'u32' }) },
  uniforms: { at: 'u32', size: 'u32' },
  wgsl: (spec: PackSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { out[base_out() + uniforms.at + i] = ${spec.words ? 'x[base_x() + i]' : 'bitcast<u32>(load_x(i))'}; }
    }`,
});

/** Small arrays of one call in one buffer of words, and where each lies. */
export interface Extras {
  tensor: Tensor | undefined;
  /** First word of each array, in the order given. */
  at: number[];
}

/**
 * Packs arrays into one buffer of 32-bit elements (its dtype says f32, integers keep their bits); a single array of such elements is
 * taken as it lies. The result enters the current scope.
 */
export function packExtras(device: Device, arrays: readonly Tensor[]): Extras {
  const [first] = arrays;
  if (!first) return { tensor: undefined, at: [] };
  if (arrays.length === 1 && dtypeBytes(first.dtype) === 4 && first.contiguous) return { tensor: first, at: [0] };
  const at: number[] = [];
  let words = 0;
  for (const array of arrays) {
    at.push(words);
    words += array.size;
  }
  const out = empty(device, [words], 'f32', 'attention extras');
  arrays.forEach((array, i) => {
    const x = asContiguous(array, 1);
    packWords.run(device, {
      spec: { words: dtypeBytes(x.dtype) === 4 },
      tensors: { x, out },
      uniforms: { at: at[i] ?? 0, size: x.size },
      grid: [Math.ceil(x.size / 256)],
    });
  });
  return { tensor: out, at };
}
