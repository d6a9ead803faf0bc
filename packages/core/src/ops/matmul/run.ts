import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
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

/** Records a product: one dispatch, or two where K is split. */
export function runProduct(product: Product): void {
  const { out } = product;
  const { device } = out;
  const problem = problemOf(product.a, product.b, out, { a: product.transposeA ?? false, b: product.transposeB ?? false });
  const plan = product.plan ?? planMatmul(problem, product.precision ?? 'f32', device.capabilities);
  const grid = [plan.workgroups] as const;
  const whole: OutSpec = {
    partial: false,
    outWidth: problem.out.width === 1 ? 1 : 4,
    bias: product.bias !== undefined,
    activation: product.activation ?? 'none',
    addTo: product.addTo !== undefined,
  };
  const uniforms = uniformsOf(problem, plan);
  const [a, b] = [alignedDown(product.a, uniforms.restA), alignedDown(product.b, uniforms.restB)];
  const epilogue = { bias: product.bias, addTo: product.addTo };
  if (plan.splits === 1) {
    const spec: OutSpec = plan.kernel === 'vector' && plan.swap ? { ...whole, outWidth: 1 } : whole;
    dispatchPlan(problem, plan, spec, { tensors: { a, b, out, ...epilogue }, uniforms, grid });
    return;
  }
  const { M, N, matrices } = problem;
  const parts = empty(device, [plan.splits, matrices, M, N], 'f32', 'partial products');
  const partial: OutSpec = {
    partial: true,
    outWidth: N % 4 === 0 && !(plan.kernel === 'vector' && plan.swap) ? 4 : 1,
    bias: false,
    activation: 'none',
    addTo: false,
  };
  dispatchPlan(problem, plan, partial, { tensors: { a, b, out: parts }, uniforms: { ...uniforms, rowOut: N }, grid });
  runSplitSum(device, { ...whole, partial: false }, { tensors: { parts, out, ...epilogue }, uniforms });
  parts.dispose();
}

// Own fields stand in front of what is spread: the other way round V8 takes microseconds to make the object.
function dispatchPlan(problem: MatmulProblem, plan: MatmulPlan, out: OutSpec, call: ProductCall): void {
  const { device } = problem.out.tensor;
  const transposeA = problem.a.transposed;
  const transposeB = problem.b.transposed;
  if (plan.kernel === 'tile') {
    runTile(device, { transposeA, transposeB, vecA: plan.a === 'vec4', vecB: plan.b === 'vec4', ...out, ...plan.tile }, call);
  } else if (plan.kernel === 'matrix') {
    const tails = problem.K % plan.tile.depth !== 0;
    runMatrix(device, { ahead: plan.ahead, tails, transposeA, transposeB, loadA: plan.a, loadB: plan.b, ...out, ...plan.tile }, call);
  } else {
    const { form, swap, few, few4, many4 } = plan;
    runVector(device, { form, swap, few, few4, many4, fewAlongDepth: swap ? transposeB : !transposeA, ...out }, call);
  }
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
