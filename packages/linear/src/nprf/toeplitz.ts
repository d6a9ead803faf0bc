import { concat, permute, slice, sum, type Tensor, zeros } from '@heed/core';
import { apply, asContiguous, empty } from '@heed/core/~internal';
import { planTransform, runFirst, runLast, runMiddle, type Slab, type TransformPlan } from './kernels/convolve.js';
import { diagonalSums } from './kernels/diagonals.js';
import { directProduct, type ProductOperands, type ProductShape } from './kernels/direct.js';
import { correlateParts, entriesOf, runCorrelate, spectrumOf } from './kernels/spectrum.js';
import { earlyRows, type NprfPath, slabBytes } from './plan.js';
import { type Positions, spanOf } from './positions.js';

/** What is multiplied. */
export interface ToeplitzProblem extends Positions {
  heads: number;
  path: NprfPath;
}

/**
 * S_i = sum_j c_(j-i) (a_i . b_j) w_j, differentiable in all four: the gradients by a, b and w are the same product with the operands
 * in other places, the one by c a correlation.
 * @param operands a [entries, queries, features], b [entries, keys, features], w [entries, keys, width], c [heads, table]; entries are
 *   batch x heads
 * @returns [entries, queries, width]
 */
export function toeplitzProduct(operands: ProductOperands, problem: ToeplitzProblem): Tensor {
  const early = problem.path === 'fft' ? earlyRows(operands.a.dim(1), operands.b.dim(1), problem.shift) : 0;
  if (early === 0) return productOp(operands, problem);
  // Fourier transforms are right against the largest outputs: rows that see few keys go by pairs
  const { a, b, w, c } = operands;
  const { centre, shift } = problem;
  const seen = early + shift;
  const queries = a.dim(1);
  // entry of offset o is o + centre; row i of a part that begins at `early` stands at i - early
  const head = {
    a: slice(a, 1, 0, early),
    b: slice(b, 1, 0, seen),
    w: slice(w, 1, 0, seen),
    c: slice(c, 1, centre + 1 - early, centre + shift + 1),
  };
  const rest = { a: slice(a, 1, early), b, w, c };
  if (early === queries) return productOp(operands, { ...problem, path: 'direct' });
  return concat(
    [
      productOp(head, { ...problem, path: 'direct', centre: early - 1 }),
      productOp(rest, { ...problem, centre: centre - early, shift: shift + early }),
    ],
    1,
  );
}

function productOp(given: ProductOperands, problem: ToeplitzProblem): Tensor {
  const inputs = [given.a, given.b, given.w, given.c];
  return apply({
    name: 'nprf',
    inputs,
    forward: () => product(dense(inputs), { ...problem, transposed: false }, problem.path),
    saves: () => inputs,
    backward: ([dS], { saved, needs }) => {
      if (!dS) return [null, null, null, null];
      const { a, b, w, c } = dense(saved);
      const g = asContiguous(dS);
      const forward = { ...problem, transposed: false };
      const back = { ...problem, transposed: true };
      return [
        needs[0] ? product({ a: g, b: w, w: b, c }, forward, problem.path) : null,
        needs[1] ? product({ a: w, b: g, w: a, c }, back, problem.path) : null,
        needs[2] ? product({ a: b, b: a, w: g, c }, back, problem.path) : null,
        needs[3] ? entryGradient({ a, b, w, g }, problem, c.dim(1)) : null,
      ];
    },
  });
}

function dense(inputs: readonly Tensor[]): ProductOperands {
  const [a, b, w, c] = inputs.map((x) => asContiguous(x)) as [Tensor, Tensor, Tensor, Tensor];
  return { a, b, w, c };
}

function product(operands: ProductOperands, shape: ProductShape, path: NprfPath): Tensor {
  const { a, w } = operands;
  const outShape = [a.dim(0), a.dim(1), w.dim(2)];
  if (outShape.includes(0) || w.dim(1) === 0) return zeros(a.device, outShape);
  return path === 'direct' ? directProduct(operands, shape) : transformProduct(operands, shape);
}

/** Tokens last. */
const turned = (x: Tensor): Tensor => asContiguous(permute(x, [0, 2, 1]));

function transformProduct({ a, b, w, c }: ProductOperands, shape: ProductShape): Tensor {
  const { device } = a;
  const plan = planTransform(spanOf(shape, a.dim(1)), spanOf(shape, b.dim(1)));
  const spectrum = spectrumOf(c, plan, shape);
  const [turnedA, turnedB, turnedW] = [turned(a), turned(b), turned(w)];
  const out = empty(device, [a.dim(0), w.dim(2), a.dim(1)]);
  const slabs = slabsOf(a.dim(0), a.dim(2), w.dim(2), plan, device.limits.maxStorageBufferBindingSize);
  const mid = empty(device, [Math.max(...slabs.map((s) => s.entries * s.features * s.pairs)), plan.n, 2]);
  for (const slab of slabs) {
    runFirst(device, plan, slab, { b: turnedB, w: turnedW, out: mid }, shape);
    runMiddle(device, plan, slab, { mid, spectrum }, shape.heads, shape.transposed);
    runLast(device, plan, slab, { mid, a: turnedA, out }, shape);
  }
  return turned(out);
}

function entryGradient({ a, b, w, g }: { a: Tensor; b: Tensor; w: Tensor; g: Tensor }, problem: ToeplitzProblem, table: number): Tensor {
  const { device } = a;
  const { heads, path } = problem;
  if (a.size === 0 || b.size === 0) return zeros(device, [heads, table]);
  if (path === 'direct') return diagonalSums({ a, g, b, w }, problem, heads, table);
  const plan = planTransform(spanOf(problem, a.dim(1)), spanOf(problem, b.dim(1)));
  const [turnedA, turnedB, turnedW, turnedG] = [turned(a), turned(b), turned(w), turned(g)];
  const slabs = slabsOf(a.dim(0), a.dim(2), w.dim(2), plan, device.limits.maxStorageBufferBindingSize);
  const most = Math.max(...slabs.map((s) => s.entries * s.features * s.pairs));
  const [x, u] = [empty(device, [most, plan.n, 2]), empty(device, [most, plan.n, 2])];
  const sums = zeros(device, [correlateParts(plan.n1, heads), heads, plan.n, 2]);
  for (const slab of slabs) {
    runFirst(device, plan, slab, { b: turnedB, w: turnedW, out: x }, problem);
    runFirst(device, plan, slab, { b: turnedA, w: turnedG, out: u }, problem);
    runCorrelate(device, plan, slab, { x, u, out: sums }, heads);
  }
  return entriesOf(sum(sums, 0), plan, problem, table);
}

/** Slabs of rows (entry x feature x pair of columns) whose transforms fit; features innermost, pure. */
export function slabsOf(entries: number, features: number, width: number, plan: TransformPlan, bindingBytes: number): Slab[] {
  const most = Math.max(1, Math.floor(Math.min(slabBytes, bindingBytes) / (8 * plan.n)));
  const all = Math.ceil(width / 2);
  const pairs = Math.min(all, most);
  const depth = Math.max(1, Math.min(features, Math.floor(most / pairs)));
  const count = Math.max(1, Math.min(entries, Math.floor(most / (pairs * depth))));
  const list: Slab[] = [];
  for (let entryFirst = 0; entryFirst < entries; entryFirst += count)
    for (let pairFirst = 0; pairFirst < all; pairFirst += pairs)
      for (let featureFirst = 0; featureFirst < features; featureFirst += depth)
        list.push({
          entryFirst,
          entries: Math.min(count, entries - entryFirst),
          featureFirst,
          features: Math.min(depth, features - featureFirst),
          pairFirst,
          pairs: Math.min(pairs, all - pairFirst),
        });
  return list;
}
