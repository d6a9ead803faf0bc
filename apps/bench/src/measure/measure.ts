import { type Device, scope, type Tensor } from '@heed/core';
import type { Entry } from '../entry.js';
import type { RecordEntry } from '../record.js';
import type { Clock } from './clock.js';
import { type Timing, timingOf } from './statistics.js';
import type { Stopwatch, Timed } from './stopwatch.js';

/** How long and how often. */
export interface Effort {
  /** GPU time to spend on the repetitions of one entry, cold and warm each. */
  readonly budgetMs: number;
  readonly least: number;
  readonly most: number;
  /** Warm-up of the GPU's clock before an entry; shorter where the GPU was busy a moment ago. */
  readonly warmUpMs: number;
}

/** What an entry is measured with. */
export interface Instruments {
  readonly stopwatch: Stopwatch;
  /** Without one the clock is taken to be up: a software device has none. */
  readonly clock?: Clock | undefined;
}

/** A measured entry whose error is still to be computed. */
export interface Measured {
  readonly entry: Entry;
  readonly figures: Omit<RecordEntry, 'error' | 'floor' | 'floorShare' | 'clock'>;
  /** The slower of the clock's readings before and behind the repetitions, in milliseconds. */
  readonly pulseMs?: number;
  /** Computes the error on the host. */
  readonly error: () => number;
}

/** After so long without work a GPU's clock counts as cold. */
const COLD_AFTER_MS = 100;
/** A clock below this share of its best is warmed up once more before the entry is timed. */
const UP = 0.9;
let busyUntil = -Infinity;

const release = (tensors: readonly Tensor[]): void => tensors.forEach((t) => t.dispose());

/** Measures one entry; its inputs are gone when this resolves. */
export async function measure(device: Device, { stopwatch, clock }: Instruments, entry: Entry, effort: Effort): Promise<Measured> {
  const { liveBytes } = device.memory();
  const opened = entry.open(device);
  try {
    await device.idle();
    device.resetPeak();
    const outputs = scope(() => opened.run(() => {}));
    const { peakBytes } = device.memory();
    const error = await opened.sample(outputs);
    release(outputs);
    const work: Timed = (restart) => scope(() => opened.run(restart));
    const rested = performance.now() - busyUntil;
    await stopwatch.warmUp(work, rested > COLD_AFTER_MS ? effort.warmUpMs : Math.min(effort.warmUpMs, 60));
    const before = await raised(clock, effort);
    const timed = await timings(device, stopwatch, work, effort);
    const after = await clock?.read();
    const kernels = device.capabilities.timestamps ? (await device.profile(() => release(work(() => {})))).kernels : undefined;
    busyUntil = performance.now();
    const { cold, warm } = timed;
    return {
      entry,
      error,
      ...(before !== undefined && after !== undefined && { pulseMs: Math.max(before, after) }),
      figures: {
        ...figuresOf(entry, cold, peakBytes - liveBytes),
        ...(warm && { warm: { ms: warm.ms, quartiles: warm.quartiles } }),
        wallMs: timed.wall.ms,
        ...(kernels && { kernels }),
      },
    };
  } finally {
    opened.dispose();
  }
}

/** The clock's reading once it is up, or after three tries. */
async function raised(clock: Clock | undefined, { warmUpMs }: Effort): Promise<number | undefined> {
  if (!clock) return undefined;
  let reading = await clock.read();
  for (let tries = 0; clock.share(reading) < UP && tries < 3; tries++) {
    await clock.warmUp(warmUpMs / 2);
    reading = await clock.read();
  }
  return reading;
}

async function timings(
  device: Device,
  stopwatch: Stopwatch,
  work: Timed,
  effort: Effort,
): Promise<{ cold: Timing; warm?: Timing; wall: Timing }> {
  // long runs vary little: fewer of them
  const least = (ms: number): number => (ms > 50 ? Math.min(3, effort.least) : effort.least);
  const repeats = (ms: number): number => Math.round(Math.min(effort.most, Math.max(least(ms), effort.budgetMs / Math.max(ms, 1e-3))));
  if (!device.capabilities.timestamps) {
    const wall = timingOf(await stopwatch.wallMs(work, effort.least));
    return { cold: wall, wall };
  }
  const [first = 1] = await stopwatch.gpuMs(work, 1, false);
  const cold = timingOf(await stopwatch.gpuMs(work, repeats(first + 0.2), true));
  const warm = timingOf(await stopwatch.gpuMs(work, repeats(first), false));
  const wall = timingOf(await stopwatch.wallMs(work, first > 50 ? 2 : Math.min(effort.least, 5)));
  return { cold, warm, wall };
}

function figuresOf(entry: Entry, { ms, quartiles, repeats }: Timing, bytes: number): Omit<Measured['figures'], 'wallMs'> {
  const { id, shape, dtype, pass, work, memory, mask, series } = entry;
  return {
    id,
    shape,
    dtype,
    pass,
    ms,
    quartiles,
    repeats,
    ...(work.flops > 0 && { tflops: work.flops / (ms * 1e9) }),
    gbps: work.bytes / (ms * 1e6),
    bytes,
    ...(memory && { memory: { formula: memory.bytes, why: memory.why } }),
    ...(mask && { mask }),
    ...(series && { series }),
  };
}
