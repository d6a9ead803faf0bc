import { apply } from '../autodiff/tape.js';
import { dtypeBytes } from '../dtype.js';
import { constantTable } from '../kernel/constants.js';
import { read } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { moveBindings, type MoveSpec, moveText, moveWords } from '../tensor/copy.js';
import { empty, zeros } from '../tensor/create.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { TokenOrder } from './permute-tokens.js';

/** Consecutive batch entries and heads of a tensor [batch, tokens, heads, dim]. */
export interface HeadPart {
  entry: number;
  entries: number;
  head: number;
  heads: number;
}

type PartSpec = MoveSpec & { join: boolean; ordered: boolean };

// Rows of some heads to a tensor of their own, or back: part[place of t, h, :] = whole[t, h, :], for a range of tokens t.
// tile    a word of up to 16 bytes a lane where rows allow, 256 lanes
// bytes   reads and writes one element each, 4 a row of places
const moveHeads = defineKernel({
  name: 'permute-heads',
  bindings: { ...moveBindings, places: read<PartSpec>('u32', { when: ({ ordered }) => ordered }) },
  uniforms: { items: 'u32', rowItems: 'u32', heads: 'u32', firstToken: 'u32', tokenStride: 'u32', headStride: 'u32' },
  wgsl: (spec: PartSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = i / uniforms.rowItems;
      let token = row / uniforms.heads;
      let h = row % uniforms.heads;
      let place = ${spec.ordered ? 'load_places(uniforms.firstToken + token)' : 'uniforms.firstToken + token'};
      let whole = token * uniforms.tokenStride + h * uniforms.headStride + i % uniforms.rowItems;
      let part = (place * uniforms.heads + h) * uniforms.rowItems + i % uniforms.rowItems;
      ${spec.join ? moveText(spec, 'whole', 'part') : moveText(spec, 'part', 'whole')}
    }`,
});

/**
 * Entries and heads in tensors of their own, tokens in another order: part[:, i, h] = x[entry + :, order[i], head + h]. x may be larger
 * than a binding; the parts may not.
 * @param x [batch, tokens, heads, ...]
 * @returns a tensor [entries, tokens, heads, ...] for each part; differentiable
 */
export function splitHeads(x: Tensor, parts: readonly HeadPart[], order: TokenOrder | undefined): Tensor[] {
  const { shape } = x;
  return [
    ...apply<readonly Tensor[]>({
      name: 'splitHeads',
      inputs: [x],
      forward: () => split(x, parts, order),
      backward: (cotangents) => [join(cotangents, parts, shape, order)],
    }),
  ];
}

/** The inverse of `splitHeads`: parts that together have every entry and head of `shape` once. Differentiable. */
export function joinHeads(list: readonly Tensor[], parts: readonly HeadPart[], shape: Shape, order: TokenOrder | undefined): Tensor {
  return apply({
    name: 'joinHeads',
    inputs: list,
    forward: () => join(list, parts, shape, order) as Tensor,
    backward: ([dOut]) => (dOut ? split(dOut, parts, order) : list.map(() => null)),
  });
}

function split(x: Tensor, parts: readonly HeadPart[], order: TokenOrder | undefined): Tensor[] {
  return parts.map((part) => {
    const made = empty(x.device, [part.entries, x.dim(1), part.heads, ...x.shape.slice(3)], x.dtype);
    move(x, made, part, order, false);
    return made;
  });
}

/** Parts that are null leave zeros. */
function join(list: readonly (Tensor | null)[], parts: readonly HeadPart[], shape: Shape, order: TokenOrder | undefined): Tensor | null {
  const first = list.find((part) => part !== null);
  if (!first) return null;
  const make = list.includes(null)
    ? () => zeros(first.device, shape, { dtype: first.dtype })
    : () => empty(first.device, shape, first.dtype);
  const whole = make();
  parts.forEach((part, i) => {
    const own = list[i];
    if (own) move(whole, own, part, order, true);
  });
  return whole;
}

/** Bytes that a window may begin ahead of its first element. */
const slack = 512;

function move(whole: Tensor, part: Tensor, { entry, entries, head, heads }: HeadPart, order: TokenOrder | undefined, join: boolean): void {
  const { device, dtype } = whole;
  const tokens = whole.dim(1);
  const row = whole.shape.slice(3).reduce((product, n) => product * n, 1);
  const [batchStride = 0, tokenStride = 0, headStride = 0] = whole.strides;
  const { word, per } = moveWords(dtype, [row, whole.offset, batchStride, tokenStride, headStride, part.offset]);
  const places = order && constantTable(device, `${order.key} inverse`, () => order.inverse);
  // tokens whose rows fit a binding
  const most = Math.floor((device.limits.maxStorageBufferBindingSize - slack) / Math.max(1, tokenStride * dtypeBytes(dtype)));
  for (let e = 0; e < entries; e++) {
    const own = part.view({ shape: [tokens, heads, row], strides: [heads * row, row, 1], offset: part.offset + e * tokens * heads * row });
    for (let firstToken = 0; firstToken < tokens; firstToken += most) {
      const count = Math.min(most, tokens - firstToken);
      const window = whole.view({
        shape: [count, heads, row],
        strides: [tokenStride, headStride, 1],
        offset: whole.offset + (entry + e) * batchStride + firstToken * tokenStride + head * headStride,
      });
      const items = (count * heads * row) / per;
      moveHeads.run(device, {
        spec: { word, join, ordered: places !== undefined },
        tensors: { x: join ? own : window, out: join ? window : own, ...(places && { places }) },
        uniforms: { items, rowItems: row / per, heads, firstToken, tokenStride: tokenStride / per, headStride: headStride / per },
        grid: [Math.ceil(items / 256)],
      });
    }
  }
}
