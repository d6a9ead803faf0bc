import type { Device } from '../../device/device.js';
import type { DType } from '../../dtype.js';
import { empty } from '../../tensor/create.js';
import type { Shape, Tensor } from '../../tensor/tensor.js';
import { sameShape } from '../check.js';
import type { Activation } from './activation.js';
import { runMatrix } from './matrix-kernel.js';
import { type MatmulPlan, planMatmul } from './plan.js';
import { type MatmulProblem, problemOf } from './problem.js';
import { runSplitSum } from './reduce-kernel.js';
import { alignedDown, restOf } from './shifted-loads.js';
import type { OutSpec, ProductCall } from './text.js';
import { runTile } from './tile-kernel.js';
import { runVector } from './vector-kernel.js';

/** out = activation(a b + bias) + addTo, written to a tensor that the caller made. */
export interface Product {
  a: Tensor;
  b: Tensor;
  /** [..., M, N] with all batch axes; any outer strides. */
  out: Tensor;
  transposeA?: boolean;
  transposeB?: boolean;
  /** [N] */
  bias?: Tensor | undefined;
  activation?: Activation | undefined;
  /** Lies as `out` does. */
  addTo?: Tensor | undefined;
  precision?: 'f32' | 'f16';
  /** In place of the planned one, for tests and timings. */
  plan?: MatmulPlan;
}

/** What the dispatches of a product take, besides tensors. */
interface PlannedProduct {
  run: (device: Device, call: ProductCall) => void;
  uniforms: ProductCall['uniforms'];
  grid: readonly [number];
  whole: OutSpec & { partial: false };
  /** Where K is split: the shape of the partial sums, and the values of the dispatch that makes them. */
  partial: { shape: Shape; uniforms: ProductCall['uniforms'] } | undefined;
}

/** Records a product: one dispatch, or two where K is split. */
export function runProduct(product: Product): void {
  const { a, b, out, bias, addTo } = product;
  const { device } = out;
  const { run, uniforms, grid, whole, partial } = product.plan ? planProduct(product) : rememberedProduct(product);
  const [boundA, boundB] = [alignedDown(a, uniforms.restA), alignedDown(b, uniforms.restB)];
  if (!partial) {
    run(device, { tensors: { a: boundA, b: boundB, out, bias, addTo }, uniforms, grid });
    return;
  }
  const parts = empty(device, partial.shape, 'f32', 'partial products');
  run(device, { tensors: { a: boundA, b: boundB, out: parts }, uniforms: partial.uniforms, grid });
  runSplitSum(device, whole, { tensors: { parts, out, bias, addTo }, uniforms });
  parts.dispose();
}

function planProduct(product: Product): PlannedProduct {
  const { a, b, out, transposeA = false, transposeB = false, precision = 'f32' } = product;
  const problem = problemOf(a, b, out, { a: transposeA, b: transposeB });
  const plan = product.plan ?? planMatmul(problem, precision, out.device.capabilities);
  const uniforms = uniformsOf(problem, plan);
  const grid = [plan.workgroups] as const;
  const single = plan.kernel === 'vector' && plan.swap;
  const { M, N, matrices } = problem;
  const whole: PlannedProduct['whole'] = {
    partial: false,
    outWidth: problem.out.width === 1 || (single && plan.splits === 1) ? 1 : 4,
    bias: product.bias !== undefined,
    activation: product.activation ?? 'none',
    addTo: product.addTo !== undefined,
  };
  if (plan.splits === 1) return { run: kernelOf(problem, plan, whole), uniforms, grid, whole, partial: undefined };
  const spec: OutSpec = { partial: true, outWidth: N % 4 === 0 && !single ? 4 : 1, bias: false, activation: 'none', addTo: false };
  const partial = { shape: Object.freeze([plan.splits, matrices, M, N]), uniforms: { ...uniforms, rowOut: N } };
  return { run: kernelOf(problem, plan, spec), uniforms, grid, whole, partial };
}

// Own fields stand in front of what is spread: the other way round V8 takes microseconds to make the object.
function kernelOf(problem: MatmulProblem, plan: MatmulPlan, out: OutSpec): PlannedProduct['run'] {
  const transposeA = problem.a.transposed;
  const transposeB = problem.b.transposed;
  if (plan.kernel === 'tile') {
    const spec = { transposeA, transposeB, vecA: plan.a === 'vec4', vecB: plan.b === 'vec4', ...out, ...plan.tile };
    return (device, call) => runTile(device, spec, call);
  }
  if (plan.kernel === 'matrix') {
    const tails = problem.K % plan.tile.depth !== 0;
    const spec = { tails, transposeA, transposeB, loadA: plan.a, loadB: plan.b, ...out, ...plan.tile };
    return (device, call) => runMatrix(device, spec, call);
  }
  const { form, swap, few, few4, many4 } = plan;
  const spec = { form, swap, few, few4, many4, fewAlongDepth: swap ? transposeB : !transposeA, ...out };
  return (device, call) => runVector(device, spec, call);
}

/** How a tensor lies, as far as plans look at it. */
interface Layout {
  shape: Shape;
  /** Undefined: row-major without gaps. */
  strides: Shape | undefined;
  /** The first element, modulo the widest load. */
  offset: number;
  dtype: DType;
}

interface KnownProduct {
  a: Layout;
  b: Layout;
  out: Layout;
  flags: number;
  activation: Activation | undefined;
  planned: PlannedProduct;
}

const mostProducts = 256;

/** The plan of a product, from before where one like it ran: a model asks for the same few again and again. */
function rememberedProduct(product: Product): PlannedProduct {
  const { a, b, out, activation, transposeA, transposeB, bias, addTo, precision } = product;
  const flags = (transposeA ? 1 : 0) + (transposeB ? 2 : 0) + (bias ? 4 : 0) + (addTo ? 8 : 0) + (precision === 'f16' ? 16 : 0);
  const { remembered } = out.device;
  let known = remembered.get(runProduct) as Map<number, KnownProduct[]> | undefined;
  if (!known) remembered.set(runProduct, (known = new Map()));
  const hash = Math.imul(a.size, 31) ^ Math.imul(b.size, 1009) ^ out.size ^ (flags << 24);
  let alike = known.get(hash);
  for (const one of alike ?? []) {
    if (one.flags !== flags || one.activation !== activation) continue;
    if (liesAs(a, one.a) && liesAs(b, one.b) && liesAs(out, one.out)) return one.planned;
  }
  const planned = planProduct(product);
  if (known.size >= mostProducts) known.clear();
  if (!alike || alike.length >= mostProducts) known.set(hash, (alike = []));
  alike.push({ a: layoutOf(a), b: layoutOf(b), out: layoutOf(out), flags, activation, planned });
  return planned;
}

function layoutOf(x: Tensor): Layout {
  return { shape: x.shape, strides: x.contiguous ? undefined : x.strides, offset: x.offset & 7, dtype: x.dtype };
}

function liesAs(x: Tensor, { shape, strides, offset, dtype }: Layout): boolean {
  if (x.dtype !== dtype || (x.offset & 7) !== offset || (x.shape !== shape && !sameShape(x.shape, shape))) return false;
  return x.contiguous ? strides === undefined : strides !== undefined && sameShape(x.strides, strides);
}

function uniformsOf(problem: MatmulProblem, plan: MatmulPlan): ProductCall['uniforms'] {
  const { M, N, K, matrices, a, b, out } = problem;
  return {
    batch: [...problem.batchShape, ...out.batch],
    batchStrides: [...a.batch, ...b.batch],
    M,
    N,
    K,
    rowA: a.row,
    rowB: b.row,
    rowOut: out.row,
    matrices,
    splits: plan.splits,
    splitDepth: plan.splitDepth,
    total: plan.workgroups,
    restA: plan.kernel === 'matrix' ? restOf(a.tensor, plan.a) : 0,
    restB: plan.kernel === 'matrix' ? restOf(b.tensor, plan.b) : 0,
  };
}
