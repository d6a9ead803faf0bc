import type { Params } from '../autodiff/grad.js';
import { HeedError } from '../errors.js';
import { Tensor } from '../tensor/tensor.js';

/** The tensors of a tree by path: `blocks.0.attention.query`. The order is that of the tree. */
export function namedTensors(params: Params, prefix = ''): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  const visit = (value: unknown, path: string): void => {
    if (value instanceof Tensor) found.set(path, value);
    else if (typeof value === 'object' && value !== null)
      for (const [name, child] of Object.entries(value)) visit(child, path ? `${path}.${name}` : name);
  };
  visit(params, prefix);
  return found;
}

/** Gradients by the names of the parameters. @throws HeedError SHAPE_MISMATCH with every name that does not fit */
export function matchGradients(params: ReadonlyMap<string, Tensor>, grads: Params): Map<string, Tensor> {
  const named = namedTensors(grads);
  const wrong: string[] = [];
  for (const [name, p] of params) {
    const g = named.get(name);
    if (!g) wrong.push(`"${name}" has no gradient`);
    else if (g.shape.join() !== p.shape.join()) wrong.push(`"${name}" is [${p.shape.join(', ')}], its gradient [${g.shape.join(', ')}]`);
  }
  if (wrong.length > 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `optim: the gradients do not fit the parameters: ${wrong.join('; ')}; pass the grads of valueAndGrad over the same tree`,
    );
  return named;
}
