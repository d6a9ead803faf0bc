import { type DType, dtypeBytes } from '../dtype.js';
import { type Binding, read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import type { WgslModule } from '../kernel/modules.js';
import { empty } from './create.js';
import type { Shape, Tensor } from './tensor.js';

/** Offset of a flat index in a strided tensor of up to 8 axes: `stridedOffset(flat, rank, shape, strides)`. */
export const stridedOffset: WgslModule = {
  name: 'strided-offset',
  text: `
    fn stridedOffset(flat: u32, rank: u32, shape: array<vec4u, 2>, strides: array<vec4u, 2>) -> u32 {
      var rest = flat;
      var at = 0u;
      for (var axis = rank; axis > 0u; axis--) {
        let i = axis - 1u;
        let n = shape[i >> 2u][i & 3u];
        at += (rest % n) * strides[i >> 2u][i & 3u];
        rest /= n;
      }
      return at;
    }`,
};

/** How elements are moved without looking at them: as words of up to 16 bytes, whatever their dtype, or ('') one by one. */
export type MoveSpec = { word: '' | 'u32' | 'vec2u' | 'vec4u' };

/** The widest word that divides all of these, counted in elements; and elements a word. Pure. */
export function moveWords(dtype: DType, counts: readonly number[]): MoveSpec & { per: number } {
  const size = dtypeBytes(dtype);
  for (const [word, bytes] of [['vec4u', 16] as const, ['vec2u', 8] as const, ['u32', 4] as const])
    if (counts.every((n) => (n * size) % bytes === 0)) return { word, per: bytes / size };
  return { word: '', per: 1 };
}

const rawWord = ({ word }: MoveSpec): string | undefined => (word === '' ? undefined : word);
/** Bindings `x` and `out` of a kernel that moves, and the statement that moves item `from` to item `to`. */
export const moveBindings: Readonly<Record<'x' | 'out', Binding<MoveSpec>>> = {
  x: read<MoveSpec>('any', { raw: rawWord }),
  out: write<MoveSpec>('any', { raw: rawWord }),
};
export function moveText({ word }: MoveSpec, to: string, from: string): string {
  return word === '' ? `store_out(${to}, load_x(${from}));` : `out[base_out() + ${to}] = x[base_x() + ${from}];`;
}

// Copies a strided tensor into row-major order.
// tile    a word of up to 16 bytes a lane where rows start at multiples of it, else an element; 256 lanes
// bytes   reads and writes one element each
const gatherStrided = defineKernel({
  name: 'strided-copy',
  bindings: moveBindings,
  uniforms: { shape: 'u32x8', strides: 'u32x8', rank: 'u32', items: 'u32' },
  modules: [stridedOffset],
  wgsl: (spec: MoveSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { ${moveText(spec, 'i', 'stridedOffset(i, uniforms.rank, uniforms.shape, uniforms.strides)')} }
    }`,
});

/** Merges axes that lie behind each other, so that strided loops have fewer. */
export function mergeAxes(shape: Shape, strides: Shape): { shape: number[]; strides: number[] } {
  const outShape: number[] = [];
  const outStrides: number[] = [];
  for (let axis = 0; axis < shape.length; axis++) {
    const n = shape[axis] ?? 1;
    const stride = strides[axis] ?? 0;
    if (n === 1) continue;
    const last = outShape.length - 1;
    if (last >= 0 && outStrides[last] === stride * n) {
      outShape[last] = (outShape[last] ?? 1) * n;
      outStrides[last] = stride;
    } else {
      outShape.push(n);
      outStrides.push(stride);
    }
  }
  if (outShape.length === 0) return { shape: [1], strides: [1] };
  return { shape: outShape, strides: outStrides };
}

/** How a strided tensor is copied: axes merged, in items of `per` elements; pure. */
export interface StridedCopyPlan extends MoveSpec {
  per: number;
  shape: number[];
  strides: number[];
  items: number;
}

/** Words of several elements where the last axis runs along memory and every row starts at a multiple of them. */
export function planStridedCopy(x: { dtype: DType; shape: Shape; strides: Shape; offset: number; size: number }): StridedCopyPlan {
  const { shape, strides } = mergeAxes(x.shape, x.strides);
  const last = shape.length - 1;
  const { word, per } =
    strides[last] === 1
      ? moveWords(x.dtype, [shape[last] ?? 1, x.offset, ...strides.filter((_, axis) => axis !== last)])
      : ({ word: '', per: 1 } as const);
  const scaled = (list: readonly number[], lastScaled: boolean): number[] =>
    list.map((n, axis) => ((axis === last) === lastScaled ? n / per : n));
  return { word, per, shape: scaled(shape, true), strides: scaled(strides, false), items: x.size / per };
}

/** A row-major copy of `x` (always a new buffer). */
export function copyContiguous(x: Tensor): Tensor {
  const out = empty(x.device, x.shape, x.dtype, x.label);
  const { word, shape, strides, items } = planStridedCopy(x);
  gatherStrided.run(x.device, {
    spec: { word },
    tensors: { x, out },
    uniforms: { shape, strides, rank: shape.length, items },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

/** `x` itself when it is contiguous and starts at a multiple of `align` elements, else a copy. */
export function asContiguous(x: Tensor, align = 4): Tensor {
  return x.contiguous && x.offset % align === 0 ? x : copyContiguous(x);
}
