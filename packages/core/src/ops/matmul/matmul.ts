import { apply, currentTape } from '../../autodiff/tape.js';
import type { FloatDType } from '../../dtype.js';
import { HeedError } from '../../errors.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { broadcastShapes } from '../broadcast.js';
import { expectFloat, expectShape } from '../check.js';
import { activate, activateBackward, toFloat } from './activate.js';
import { type Activation, activations } from './activation.js';
import { type Factors, gradientOfA, gradientOfB, gradientOfBias } from './gradients.js';
import { runProduct } from './run.js';

export interface MatmulOptions {
  /** a is [..., K, M]. Default false. */
  transposeA?: boolean;
  /** b is [..., N, K]. Default false. */
  transposeB?: boolean;
  /** [N], added to each row before the activation. */
  bias?: Tensor | undefined;
  /** Applied to a b + bias. */
  activation?: Activation | undefined;
  /** Added after the activation (a residual); the shape of the output. */
  addTo?: Tensor | undefined;
  /** Default: the dtype of `addTo` where it is given, else that of a. */
  outDType?: FloatDType | undefined;
  /**
   * `f16` allows operands to be rounded to f16 as they are loaded, so that f32 weights and activations run on tensor cores;
   * values beyond +-65504 are clamped, sums stay f32. Devices without them compute in f32. Default `f32`.
   */
  precision?: 'f32' | 'f16' | undefined;
}

/**
 * Matrix product activation(a b + bias) + addTo, summed in f32.
 *
 * Batch axes broadcast; with b [K, N] those of a are rows of one product. Views with outer strides (heads of a fused
 * projection, a slice of a cache) are read in place. Two f16 operands run on tensor cores where the device has them.
 *
 * Differentiable in a, b, bias and addTo. With an activation the preactivation is kept in the dtype of the output, and the
 * activation runs as a dispatch of its own; gradients of f16 operands run with operands in f16 (use loss scaling), sums over
 * rows in f32 and in a fixed order.
 *
 * @param a [..., M, K], f32 or f16
 * @param b [..., K, N], f32 or f16; dtypes may differ
 * @returns [..., M, N]
 * @throws HeedError SHAPE_MISMATCH when an operand has fewer than two axes, K differs, batch axes do not broadcast, or bias
 *   or addTo do not fit; DTYPE_MISMATCH for integers; INVALID_ARGUMENT for an unknown activation
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { bias, addTo, activation, transposeA = false, transposeB = false, precision = 'f32' } = options;
  const shape = outputShape(a, b, options);
  const dtype = options.outDType ?? ((addTo ?? a).dtype as FloatDType);
  const inputs = [a, b, ...(bias ? [bias] : []), ...(addTo ? [addTo] : [])];
  const tape = currentTape();
  const tracked = tape !== null && inputs.some((t) => tape.isTracked(t));
  const keepsInner = tracked && activation !== undefined;
  const factors: Omit<Factors, 'a' | 'b'> = {
    transposeA,
    transposeB,
    precision: a.dtype === 'f16' && b.dtype === 'f16' ? 'f16' : precision,
  };
  const outputs = apply({
    name: 'matmul',
    inputs,
    forward: () => {
      const out = empty(a.device, shape, dtype);
      const addend = addTo && asContiguous(addTo);
      if (!keepsInner) {
        runProduct({ a, b, out, transposeA, transposeB, bias, activation, addTo: addend, precision });
        return [out];
      }
      runProduct({ a, b, out, transposeA, transposeB, bias, precision });
      return [activate(out, activation, addend, dtype), out];
    },
    saves: ([, inner]) => [a, b, ...(inner ? [inner] : [])],
    backward: ([dOut], { saved, needs }) => {
      const [x = a, w = b, inner] = saved;
      if (!dOut) return inputs.map(() => null);
      const dZ = inner && activation ? activateBackward(inner, activation, dOut) : dOut;
      const gradients = [
        needs[0] ? gradientOfA({ a: x, b: w, ...factors }, dZ) : null,
        needs[1] ? gradientOfB({ a: x, b: w, ...factors }, dZ) : null,
      ];
      if (bias) gradients.push(needs[2] ? gradientOfBias(bias, dZ) : null);
      if (addTo) gradients.push(needs[inputs.length - 1] ? toFloat(dOut, addTo.dtype as FloatDType) : null);
      return gradients;
    },
  });
  outputs[1]?.dispose();
  return outputs[0] as Tensor;
}

function outputShape(a: Tensor, b: Tensor, { transposeA, transposeB, bias, addTo, activation }: MatmulOptions): number[] {
  for (const [name, x] of [
    ['a', a],
    ['b', b],
  ] as const) {
    expectFloat('matmul', name, x);
    if (x.rank < 2)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `matmul: ${name} is ${x.describe()}; it must have at least two axes, reshape a vector to [1, K] or [K, 1]`,
      );
  }
  const [M, K] = transposeA ? [a.dim(-1), a.dim(-2)] : [a.dim(-2), a.dim(-1)];
  const [depth, N] = transposeB ? [b.dim(-1), b.dim(-2)] : [b.dim(-2), b.dim(-1)];
  if (K !== depth) {
    const flags = [transposeA ? 'transposeA' : '', transposeB ? 'transposeB' : ''].filter((flag) => flag !== '').join(', ');
    throw new HeedError(
      'SHAPE_MISMATCH',
      `matmul: a ${a.describe()} and b ${b.describe()}${flags ? ` with ${flags}` : ''} are ${K} and ${depth} deep; the inner lengths must be equal, check transposeA and transposeB`,
    );
  }
  const shape = [...broadcastShapes('matmul', [a.shape.slice(0, -2), b.shape.slice(0, -2)]), M, N];
  if (bias) {
    expectFloat('matmul', 'bias', bias);
    expectShape('matmul', 'bias', bias, [N], 'one element a column of the product');
  }
  if (addTo) {
    expectFloat('matmul', 'addTo', addTo);
    expectShape('matmul', 'addTo', addTo, shape, 'the shape of the product');
  }
  if (activation !== undefined && !activations.includes(activation)) {
    throw new HeedError('INVALID_ARGUMENT', `matmul: activation is "${String(activation)}"; use one of ${activations.join(', ')}`);
  }
  return shape;
}
