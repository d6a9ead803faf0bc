import type { Params } from '../autodiff/grad.js';
import { copyContiguous } from '../tensor/copy.js';
import type { Tensor } from '../tensor/tensor.js';
import { movingAverage } from './kernels.js';
import { namedTensors } from './parameters.js';

/** Exponential moving average of parameters, for evaluation. */
export class WeightAverage {
  /** The averages by the names of the parameters. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  private readonly parameters: Map<string, Tensor>;

  /** @param decay share of the old average that stays at each update, for instance 0.999 */
  constructor(
    params: Params,
    readonly decay: number,
  ) {
    this.parameters = namedTensors(params);
    this.tensors = new Map([...this.parameters].map(([name, p]) => [name, copyContiguous(p).keep()]));
  }

  /** average = decay average + (1 - decay) parameter, after a step of the optimiser. */
  update(): void {
    for (const [name, p] of this.parameters) {
      const into = this.tensors.get(name);
      if (into) movingAverage(into, p, this.decay);
    }
  }

  /** Frees the averages. */
  dispose(): void {
    for (const t of this.tensors.values()) t.dispose();
  }
}
