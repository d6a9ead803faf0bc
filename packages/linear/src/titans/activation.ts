import { gelu, pointwise, relu, silu, type Tensor, tanh } from '@heed/core';

/** Between the layers of a memory. */
export type TitansActivation = 'gelu' | 'silu' | 'relu' | 'tanh';
export const titansActivations: readonly TitansActivation[] = ['gelu', 'silu', 'relu', 'tanh'];

const functions: Record<TitansActivation, (x: Tensor) => Tensor> = { gelu: (x) => gelu(x), silu, relu, tanh };

// First derivatives as expressions: theirs, which the outer pass needs, come from the builder.
const slopes: Record<TitansActivation, (x: Tensor) => Tensor> = {
  // Phi(x) + x phi(x)
  gelu: pointwise(
    (x) =>
      x
        .mul(Math.SQRT1_2)
        .erf()
        .add(1)
        .mul(0.5)
        .add(x.mul(x.mul(x).mul(-0.5).exp()).mul(1 / Math.sqrt(2 * Math.PI))),
    {
      name: 'titans-gelu-slope',
    },
  ),
  silu: pointwise((x) => x.sigmoid().mul(x.mul(x.neg().sigmoid()).add(1)), { name: 'titans-silu-slope' }),
  relu: pointwise((x) => x.sign().max(0), { name: 'titans-relu-slope' }),
  tanh: pointwise((x) => x.tanh().mul(x.tanh()).neg().add(1), { name: 'titans-tanh-slope' }),
};

export function activate(x: Tensor, activation: TitansActivation): Tensor {
  return functions[activation](x);
}

/** The activation's derivative at x. */
export function activationSlope(x: Tensor, activation: TitansActivation): Tensor {
  return slopes[activation](x);
}
