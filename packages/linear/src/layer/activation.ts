import { add, elu, exp, gelu, HeedError, relu, sigmoid, silu, type Tensor } from '@heed/core';

/** Activations that the papers' configurations name. */
export type LayerActivation = 'silu' | 'elu' | '1+elu' | 'relu' | 'gelu' | 'sigmoid' | 'exp' | 'none';

const functions: Record<LayerActivation, (x: Tensor) => Tensor> = {
  silu,
  elu,
  '1+elu': (x) => add(elu(x), 1),
  relu,
  gelu: (x) => gelu(x),
  sigmoid,
  exp,
  none: (x) => x,
};

/** @throws HeedError INVALID_ARGUMENT for a name that is none of them */
export function activationOf(who: string, name: LayerActivation): (x: Tensor) => Tensor {
  if (!Object.hasOwn(functions, name))
    throw new HeedError('INVALID_ARGUMENT', `${who}: activation "${String(name)}"; use ${Object.keys(functions).join(', ')}`);
  return functions[name];
}
