import { HeedError } from '../errors.js';

/** Learning rate at a step (0, 1, ...). Schedules depend on the step alone, so that a resumed run has the same. */
export type Schedule = (step: number) => number;

function check(who: string, peak: number, steps: number): void {
  if (!(peak > 0)) throw new HeedError('INVALID_ARGUMENT', `${who}: peak is ${peak}; use a learning rate above 0`);
  if (!(steps > 0)) throw new HeedError('INVALID_ARGUMENT', `${who}: steps is ${steps}; use the number of steps of the run, above 0`);
}

function warmed(step: number, warmup: number, after: (sinceWarmup: number) => number, peak: number): number {
  return step < warmup ? (peak * (step + 1)) / warmup : after(step - warmup);
}

/**
 * Warm-up, then half a cosine from the peak down to `floor` times the peak at `steps` (Loshchilov, Hutter 2017).
 * @param options the peak and the steps
 * @param options.peak learning rate at the top, above 0
 * @param options.warmup steps of linear warm-up from 0. Default 0
 * @param options.steps of the whole run
 * @param options.floor share of the peak that is left at the end. Default 0.1
 * @throws HeedError INVALID_ARGUMENT for a peak or steps that are not above 0
 */
export function cosineSchedule({
  peak,
  warmup = 0,
  steps,
  floor = 0.1,
}: {
  peak: number;
  warmup?: number;
  steps: number;
  floor?: number;
}): Schedule {
  check('cosineSchedule', peak, steps);
  const low = peak * floor;
  return (step) =>
    warmed(step, warmup, (s) => low + ((peak - low) * (1 + Math.cos(Math.PI * Math.min(1, s / Math.max(1, steps - warmup))))) / 2, peak);
}

/**
 * Warm-up, a plateau at the peak, then linear decay to `floor` times the peak over the last `decay` steps.
 * @param options the peak and the steps
 * @param options.peak learning rate at the top, above 0
 * @param options.warmup steps of linear warm-up from 0. Default 0
 * @param options.steps of the whole run
 * @param options.decay steps of the decay
 * @param options.floor share of the peak that is left at the end. Default 0
 * @throws HeedError INVALID_ARGUMENT for a peak or steps that are not above 0
 */
export function warmupStableDecaySchedule({
  peak,
  warmup = 0,
  steps,
  decay,
  floor = 0,
}: {
  peak: number;
  warmup?: number;
  steps: number;
  decay: number;
  floor?: number;
}): Schedule {
  check('warmupStableDecaySchedule', peak, steps);
  return (step) => {
    const left = Math.max(0, steps - step);
    return warmed(step, warmup, () => peak * Math.min(1, floor + ((1 - floor) * left) / Math.max(1, decay)), peak);
  };
}

/**
 * Warm-up, then the peak times sqrt(warmup / step) (Vaswani et al. 2017).
 * @param options the peak and the steps
 * @param options.peak learning rate at the top, above 0
 * @param options.warmup steps of linear warm-up from 0. Default 1
 * @throws HeedError INVALID_ARGUMENT for a peak that is not above 0
 */
export function inverseSqrtSchedule({ peak, warmup = 1 }: { peak: number; warmup?: number }): Schedule {
  check('inverseSqrtSchedule', peak, 1);
  return (step) => warmed(step, warmup, () => peak * Math.sqrt(warmup / (step + 1)), peak);
}

/**
 * Warm-up, then linear decay to 0 at `steps`.
 * @param options the peak and the steps
 * @param options.peak learning rate at the top, above 0
 * @param options.warmup steps of linear warm-up from 0. Default 0
 * @param options.steps of the whole run
 * @throws HeedError INVALID_ARGUMENT for a peak or steps that are not above 0
 */
export function linearSchedule({ peak, warmup = 0, steps }: { peak: number; warmup?: number; steps: number }): Schedule {
  check('linearSchedule', peak, steps);
  return (step) => warmed(step, warmup, (s) => peak * Math.max(0, 1 - s / Math.max(1, steps - warmup)), peak);
}

/**
 * Warm-up, then the peak.
 * @param options the peak and the steps
 * @param options.peak learning rate at the top, above 0
 * @param options.warmup steps of linear warm-up from 0. Default 0
 * @throws HeedError INVALID_ARGUMENT for a peak that is not above 0
 */
export function constantSchedule({ peak, warmup = 0 }: { peak: number; warmup?: number }): Schedule {
  check('constantSchedule', peak, 1);
  return (step) => warmed(step, warmup, () => peak, peak);
}
