import { copyInto, HeedError, scope, type Tensor, zeros } from '@heed/core';
import { accumulate, empty } from '@heed/core/~internal';
import { backwardZeta } from './backward.js';
import { runZeta } from './forward.js';
import type { ZetaSettings } from './options.js';

/** Heads of one batch entry that go through the kernels as a call of their own. */
export interface HeadGroup {
  entry: number;
  first: number;
  count: number;
}

// Windows of a buffer begin and end at multiples of 256 bytes.
const slack = 512;
// Ranges of tokens begin at multiples of this, so that views keep their alignment.
const granule = 64;

const elementBytes = ({ dtype }: Tensor): number => (dtype === 'f16' ? 2 : 4);

/** Whether all of a tensor can be bound at once. */
function fits(t: Tensor): boolean {
  const limit = t.device.limits.maxStorageBufferBindingSize;
  return t.storage.bytes <= limit || t.extent * elementBytes(t) + slack <= limit;
}

/**
 * Even groups of heads, each with tensors that fit a binding; `headBytes` is the largest row of a token and head. Pure.
 * @throws HeedError LIMIT_EXCEEDED when one head alone is larger
 */
export function planHeadGroups(
  { batch, tokens, heads }: { batch: number; tokens: number; heads: number },
  headBytes: number,
  bindingBytes: number,
): HeadGroup[] {
  const most = Math.min(heads, Math.floor((bindingBytes - slack) / (tokens * headBytes)));
  if (most < 1)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `zeta: one head of ${tokens} tokens takes ${tokens * headBytes} bytes, this device binds at most ${bindingBytes}; use fewer tokens`,
    );
  const parts = Math.ceil(heads / most);
  const size = Math.ceil(heads / parts);
  return Array.from({ length: batch * parts }, (_, i) => {
    const first = (i % parts) * size;
    return { entry: Math.floor(i / parts), first, count: Math.min(size, heads - first) };
  }).filter(({ count }) => count > 0);
}

/** The groups of a call whose tensors are larger than a binding; undefined where they fit. `kept`: tokens listed a query, 0 for none. */
export function headGroups(
  [q, k, v]: readonly [Tensor, Tensor, Tensor, Tensor],
  kept: number,
  dOut: Tensor = v,
): readonly HeadGroup[] | undefined {
  const [batch, tokens, heads] = [q.dim(0), q.dim(1), q.dim(2)];
  const bindingBytes = q.device.limits.maxStorageBufferBindingSize;
  const headBytes = Math.max(v.dim(3) * elementBytes(v), 4 * q.dim(3), 4 * kept);
  if ([q, k, v, dOut].every(fits) && batch * tokens * heads * headBytes <= bindingBytes) return undefined;
  return planHeadGroups({ batch, tokens, heads }, headBytes, bindingBytes);
}

/** The forward pass group by group; see `runZeta`. */
export function forwardInPieces(
  [q, k, v, theta]: readonly [Tensor, Tensor, Tensor, Tensor],
  settings: ZetaSettings,
  store: boolean,
  groups: readonly HeadGroup[],
): { out: Tensor; indices: Tensor | undefined } {
  const { device } = q;
  const out = empty(device, v.shape, v.dtype);
  const indices = store ? empty(device, [...v.shape.slice(0, 3), settings.topK], 'i32') : undefined;
  for (const group of groups) {
    scope(() => {
      const made = runZeta(headsOf(q, group), headsOf(k, group), headsOf(v, group), thetaOf(theta, group), settings, store);
      putHeads(out, group, made.out);
      if (indices && made.indices) putHeads(indices, group, made.indices);
    });
  }
  return { out, indices };
}

/** The gradients group by group; see `backwardZeta`. */
export function backwardInPieces(
  [q, k, v, theta]: readonly [Tensor, Tensor, Tensor, Tensor],
  indices: Tensor,
  dOut: Tensor,
  settings: ZetaSettings,
  groups: readonly HeadGroup[],
): readonly [Tensor, Tensor, Tensor, Tensor] {
  const like = (x: Tensor): Tensor => empty(x.device, x.shape, x.dtype);
  const [dq, dk, dv, dTheta] = [like(q), like(k), like(v), zeros(theta.device, theta.shape)];
  for (const group of groups) {
    scope(() => {
      const own = [headsOf(q, group), headsOf(k, group), headsOf(v, group), thetaOf(theta, group)] as const;
      const made = backwardZeta(...own, copyHeads(indices, group), headsOf(dOut, group), settings);
      [dq, dk, dv].forEach((whole, i) => putHeads(whole, group, made[i] as Tensor));
      // batch entries share theta
      const place = thetaOf(dTheta, group);
      copyInto(place, accumulate(place, made[3]));
    });
  }
  return [dq, dk, dv, dTheta];
}

function thetaOf(theta: Tensor, { first, count }: HeadGroup): Tensor {
  return theta.view({ shape: [count], offset: theta.offset + first * (theta.strides[0] ?? 1) });
}

/** Tokens first .. first + count - 1 of the heads of a group, [1, count, heads, n]. */
function tokensOf(x: Tensor, { entry, first: head, count: heads }: HeadGroup, first: number, count: number): Tensor {
  const [batchStride = 0, tokenStride = 0, headStride = 0] = x.strides;
  const offset = x.offset + entry * batchStride + first * tokenStride + head * headStride;
  return x.view({ shape: [1, count, heads, x.dim(3)], offset });
}

/** The heads of a group, as a view where it can be bound. */
function headsOf(x: Tensor, group: HeadGroup): Tensor {
  const view = tokensOf(x, group, 0, x.dim(1));
  return fits(view) ? view : copyHeads(x, group);
}

function copyHeads(x: Tensor, group: HeadGroup): Tensor {
  const own = empty(x.device, [1, x.dim(1), group.count, x.dim(3)], x.dtype);
  for (const [first, count] of tokenRanges(x))
    copyInto(tokensOf(own, { ...group, entry: 0, first: 0 }, first, count), tokensOf(x, group, first, count));
  return own;
}

function putHeads(x: Tensor, group: HeadGroup, own: Tensor): void {
  for (const [first, count] of tokenRanges(x))
    copyInto(tokensOf(x, group, first, count), tokensOf(own, { ...group, entry: 0, first: 0 }, first, count));
}

/** Ranges [first, count] of the tokens of x that fit a binding with all their heads. */
function tokenRanges(x: Tensor): [number, number][] {
  const tokens = x.dim(1);
  const tokenBytes = Math.max(1, x.strides[1] ?? 1) * elementBytes(x);
  const most = Math.floor((x.device.limits.maxStorageBufferBindingSize - slack) / tokenBytes / granule) * granule;
  const size = Math.max(granule, most);
  return Array.from({ length: Math.ceil(tokens / size) }, (_, i) => [i * size, Math.min(size, tokens - i * size)]);
}
