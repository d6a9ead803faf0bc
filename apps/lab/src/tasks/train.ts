import { type Params, scope, type Tensor, valueAndGrad } from '@heed/core';
import { adamW, cosineSchedule, namedTensors } from '@heed/core/optim';

type Named = Readonly<Record<string, Params>>;

/** How a task's model is trained. */
export interface TaskTraining {
  steps: number;
  learningRate: number;
  /** Default 0. */
  warmup?: number;
  /** Default 0.1. */
  weightDecay?: number;
  /** Largest global norm of the gradient. Default 1. */
  clip?: number;
  /** Steps between two evaluations. Default: one at the end. */
  evaluateEvery?: number;
}

/**
 * Trains parameters on a loss: AdamW, cosine to 0, clipping, no decay on the embedding. After every `evaluateEvery` steps and at the end
 * `evaluate` is awaited; when it gives true, training stops there.
 * @param loss the mean loss of a step's batch, a tensor of one number
 * @returns steps taken, and the losses at the evaluations
 */
export async function trainTask<P extends object>(
  params: P,
  loss: (params: P, step: number) => Tensor,
  training: TaskTraining,
  evaluate: (step: number, loss: number) => Promise<boolean | void> | boolean | void,
): Promise<{ steps: number; losses: number[] }> {
  const { steps, learningRate, warmup = 0, weightDecay = 0.1, clip = 1, evaluateEvery = steps } = training;
  const tree = params as unknown as Named;
  const optimizer = adamW(tree, { weightDecay, clip, groups: [{ match: /embedding/, weightDecay: 0 }] });
  const schedule = cosineSchedule({ peak: learningRate, warmup, steps, floor: 0 });
  const losses: number[] = [];
  let taken = 0;
  try {
    for (let step = 0; step < steps; step++) {
      const value = scope(() => {
        const made = valueAndGrad((p: Named) => loss(p as unknown as P, step))(tree);
        optimizer.step(made.grads, { learningRate: schedule(step) });
        return made.value;
      });
      taken = step + 1;
      const due = taken % evaluateEvery === 0 || taken === steps;
      if (due) losses.push((await value.read())[0] ?? Number.NaN);
      value.dispose();
      if (due && (await evaluate(taken, losses.at(-1) ?? Number.NaN)) === true) break;
    }
  } finally {
    optimizer.dispose();
  }
  return { steps: taken, losses };
}

/** Number of weights of a tree. */
export function countParameters(params: object): number {
  return [...namedTensors(params as unknown as Named).values()].reduce((sum, t) => sum + t.size, 0);
}

/** Frees a tree of parameters. */
export function disposeParameters(params: object): void {
  for (const t of namedTensors(params as unknown as Named).values()) t.dispose();
}
