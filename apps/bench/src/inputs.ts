import { type Device, slice, type Tensor } from '@heed/core';
import { defineKernel, empty, write } from '@heed/core/~internal';

// Inputs of every measurement, ours and the peers': a number is a function of the tensor's name and the element's index, so that the
// host makes any row of it by itself, the Python peers make the same tensors, and nothing is read back or shipped.
//
//   hash(i)  = mix(mix(i xor mix(key)) + mix(key + 1)), key the FNV-1a hash of the name, mix the 32-bit finaliser "lowbias32"
//   coarse   = (sum of the hash's four bytes - 510) / 128: nearly normal, standard deviation 1.155, exact in f16
//   fine     = the same plus 14 further bits, exact in f32: for points on a curve, which must not coincide

/** `coarse` numbers are exact in f16; `fine` ones take all of f32. */
export type Grain = 'coarse' | 'fine';

function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** FNV-1a over the characters of a name of ASCII letters. */
function keyOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** The number at index i of the tensor of this name. */
export function inputAt(name: string, grain: Grain = 'coarse'): (i: number) => number {
  const key = keyOf(name);
  const [first, second] = [mix(key), mix((key + 1) >>> 0)];
  return (i) => {
    const h = mix((mix((i ^ first) >>> 0) + second) >>> 0);
    const sum = (h & 255) + ((h >>> 8) & 255) + ((h >>> 16) & 255) + (h >>> 24) - 510;
    return grain === 'coarse' ? sum / 128 : (sum + (mix((h + 0x9e3779b9) >>> 0) >>> 18) / 16384) / 128;
  };
}

// Writes the numbers above.
// tile    4 elements a lane, 256 lanes
// bytes   writes one element each
// limits  fewer than 2^32 elements; rows outside of every `every`-th are zero
// source  "lowbias32" by C. Wellons, an integer finaliser found by search
const filled = defineKernel({
  name: 'bench-input',
  bindings: { out: write('float', { width: 4 }) },
  uniforms: { items: 'u32', start: 'u32', first: 'u32', second: 'u32', row: 'u32', tokens: 'u32', every: 'u32' },
  wgsl: ({ grain }: { grain: Grain }) => `
    fn mix32(value: u32) -> u32 {
      var x = value;
      x = (x ^ (x >> 16u)) * 0x7feb352du;
      x = (x ^ (x >> 15u)) * 0x846ca68bu;
      return x ^ (x >> 16u);
    }
    fn number(i: u32) -> f32 {
      if (i / uniforms.row % uniforms.tokens % uniforms.every != uniforms.every - 1u) { return 0.0; }
      let hash = mix32(mix32(i ^ uniforms.first) + uniforms.second);
      let sum = f32((hash & 255u) + ((hash >> 8u) & 255u) + ((hash >> 16u) & 255u) + (hash >> 24u)) - 510.0;
      return ${grain === 'coarse' ? 'sum' : '(sum + f32(mix32(hash + 0x9e3779b9u) >> 18u) / 16384.0)'} / 128.0;
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let at = uniforms.start + i * 4u;
      store_out(i, vec4f(number(at), number(at + 1u), number(at + 2u), number(at + 3u)));
    }`,
});

export interface InputOptions {
  dtype?: 'f16' | 'f32';
  /** Default coarse. */
  grain?: Grain;
  /** Only tokens t with t % every = every - 1 are not zero (axis 1 counts tokens). Default 1: all. */
  every?: number;
}

/** Elements that one dispatch writes: under every device's binding limit. */
const PIECE = 1 << 24;

/** The tensor of this name and any shape, [batch, tokens, ...] where it has more than two axes, made on the device. */
export function input(device: Device, name: string, shape: readonly number[], options: InputOptions = {}): Tensor {
  const { dtype = 'f32', grain = 'coarse', every = 1 } = options;
  const out = empty(device, shape, dtype);
  const key = keyOf(name);
  const axis = shape.length > 2 ? 1 : 0;
  const row = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  // element i lies at i, whatever the axes
  const flat = out.view({ shape: [out.size] });
  for (let from = 0; from < out.size; from += PIECE) {
    const count = Math.min(PIECE, out.size - from);
    const piece = slice(flat, 0, from, from + count);
    const items = Math.ceil(count / 4);
    filled.run(device, {
      spec: { grain },
      tensors: { out: piece },
      uniforms: { items, start: from, first: mix(key), second: mix((key + 1) >>> 0), row, tokens: shape[axis] ?? 1, every },
      grid: [Math.ceil(items / 256)],
    });
    piece.dispose();
  }
  flat.dispose();
  return out;
}
