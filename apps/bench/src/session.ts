import { type Device, HeedError } from '@heed/core';
import { entriesOf } from './entries/index.js';
import type { Entry, Request, Suite } from './entry.js';
import { measureOverhead } from './overhead.js';
import { Clock } from './measure/clock.js';
import { type Effort, type Instruments, type Measured, measure } from './measure/measure.js';
import { Stopwatch } from './measure/stopwatch.js';
import { TARGETS } from './targets.js';
import { type BenchRecord, type DeviceFigures, type Failure, floorOf, type RecordEntry, SCHEMA } from './record.js';

/** What is written before each cold repetition. */
const COLD_BYTES = 256 * 1024 * 1024;

const HARDWARE: Effort = { budgetMs: 60, least: 7, most: 40, warmUpMs: 500 };
const SOFTWARE: Effort = { budgetMs: 100, least: 3, most: 5, warmUpMs: 0 };

/** What a run needs to know besides the device. */
export interface RunOptions {
  /** What the record calls the run. */
  readonly name: string;
  readonly suites: readonly Suite[];
  /** Also the CPU side: chains of dispatches, decode steps. */
  readonly overhead: boolean;
  readonly sizes: readonly number[] | undefined;
  /** Entries whose id contains one of these; all when empty. */
  readonly only: readonly string[];
  readonly commit: string;
  readonly versions: Readonly<Record<string, string>>;
  readonly settings: DeviceFigures['settings'];
  /** Seconds after which no further entry is begun; those left are told among the failures. */
  readonly limitSeconds: number | undefined;
  readonly progress: (done: number, total: number, note: string) => void;
}

/**
 * Runs suites: times everything first, so that the GPU's clock stays up, then computes the errors on the host.
 * Times without a right result are left out and told among the failures.
 */
export async function runSuites(device: Device, options: RunOptions): Promise<BenchRecord> {
  const effort = device.isSoftware ? SOFTWARE : HARDWARE;
  const coldBytes = device.isSoftware ? 0 : COLD_BYTES;
  const stopwatch = new Stopwatch(device, coldBytes);
  const clock = device.capabilities.timestamps && !device.isSoftware ? new Clock(device, stopwatch) : undefined;
  const instruments: Instruments = { stopwatch, clock };
  const wanted = (entry: Entry): boolean => options.only.length === 0 || options.only.some((part) => entry.id.includes(part));
  const entries = distinct(
    options.suites.flatMap((suite) => entriesOf(device, { suite, sizes: options.sizes, software: device.isSoftware })),
  )
    .filter(wanted)
    .sort(targetsFirst);
  const started = performance.now();
  const late = (): boolean => options.limitSeconds !== undefined && performance.now() - started > options.limitSeconds * 1000;
  const failures: Failure[] = [];
  const total = entries.length + 1;
  try {
    options.progress(0, total, 'rates of this device');
    await clock?.warmUp(effort.warmUpMs);
    const rates = await ratesOf(device, instruments, effort);
    const measured: Measured[] = [];
    for (const [i, entry] of entries.entries()) {
      options.progress(i + 1, total, `${entry.id} after ${((performance.now() - started) / 1000).toFixed(1)} s`);
      if (late()) {
        failures.push({ id: entry.id, why: `not begun: the limit of ${options.limitSeconds} s was over` });
        continue;
      }
      const found = await measure(device, instruments, entry, effort).catch((error: unknown) => failureOf(entry.id, error));
      if ('why' in found) failures.push(found);
      else measured.push(found);
    }
    const overhead = options.overhead ? await measureOverhead(device) : undefined;
    const tickNs = device.capabilities.timestamps ? await stopwatch.tickNs() : undefined;
    const { pooledBytes, peakBytes } = device.memory();
    options.progress(total, total, 'errors against float64');
    const best = bestRates(rates, measured);
    const judged = measured.map((one) => judge(one, best, clock));
    failures.push(...judged.filter((one) => 'why' in one));
    return {
      schema: SCHEMA,
      date: new Date().toISOString(),
      commit: options.commit,
      suite: options.name,
      device: { ...figuresOf(device, options.settings), ...(tickNs !== undefined && { tickNs }), rates: best },
      versions: options.versions,
      method: { coldBytes, warmUpMs: effort.warmUpMs },
      entries: judged.filter((one) => 'ms' in one),
      failures,
      compiles: compilesOf(device),
      ...(overhead && { overhead }),
      pool: { peakBytes, pooledBytes },
    };
  } finally {
    stopwatch.dispose();
  }
}

/** What has a target comes first, in the order of the targets; the rest keeps its order. */
function targetsFirst(a: Entry, b: Entry): number {
  const place = ({ id }: Entry): number => {
    const found = TARGETS.findIndex((target) => target.id === id);
    return found < 0 ? TARGETS.length : found;
  };
  return place(a) - place(b);
}

/** Each id once: suites overlap. */
function distinct(entries: readonly Entry[]): Entry[] {
  return [...new Map(entries.map((entry) => [entry.id, entry])).values()];
}

/** A time counts with a right result only. */
function judge(
  { entry, figures, pulseMs, error: errorOf }: Measured,
  rates: DeviceFigures['rates'],
  clock: Clock | undefined,
): RecordEntry | Failure {
  const error = errorOf();
  if (!(error <= entry.tolerance)) return { id: entry.id, why: `error ${error.toExponential(1)} is over ${entry.tolerance}` };
  const { algorithm, bytes, flops, units = entry.dtype } = entry.work;
  const floor = floorOf({ algorithm, bytes, flops, units }, rates);
  const share = clock && pulseMs !== undefined && { clock: clock.share(pulseMs) };
  return { ...figures, ...share, error, floor, floorShare: floor.ms / figures.ms };
}

function failureOf(id: string, error: unknown): Failure {
  if (error instanceof HeedError && error.code === 'DEVICE_LOST') throw error;
  return { id, why: error instanceof Error ? error.message : String(error) };
}

function figuresOf(device: Device, settings: DeviceFigures['settings']): Omit<DeviceFigures, 'tickNs' | 'rates'> {
  const { name, driver, software, tier, features, toggles } = device.report;
  return { name, driver, software, tier, features, toggles, settings };
}

/** Compile times by kernel, the longest of each name. */
function compilesOf(device: Device): { kernel: string; ms: number }[] {
  const longest = new Map<string, number>();
  for (const { name, compileMs } of device.pipelines.values())
    if (compileMs !== undefined) longest.set(name, Math.max(longest.get(name) ?? 0, compileMs));
  return [...longest].map(([kernel, ms]) => ({ kernel, ms })).sort((a, b) => b.ms - a.ms);
}

/** The rates with what entries of the run reached beyond them: memory-bound ones in bytes, products in operations. */
function bestRates(rates: DeviceFigures['rates'], measured: readonly Measured[]): DeviceFigures['rates'] {
  const most = (of: (one: Measured) => number | undefined, start: number): number =>
    measured.reduce((best, one) => Math.max(best, of(one) ?? 0), start);
  const product =
    (dtype: string) =>
    ({ entry, figures }: Measured): number | undefined =>
      entry.id.startsWith(`matmul/${dtype}/`) ? figures.tflops : 0;
  return {
    ...rates,
    copyGbps: most(({ entry, figures }) => (entry.work.flops === 0 ? figures.gbps : 0), rates.copyGbps),
    ...(rates.f16Tflops !== undefined && { f16Tflops: most(product('f16'), rates.f16Tflops) }),
    f32Tflops: most(product('f32'), rates.f32Tflops),
  };
}

/** Copy speed and the rates of matrix products, measured on the device that is about to be measured. */
async function ratesOf(device: Device, instruments: Instruments, effort: Effort): Promise<DeviceFigures['rates']> {
  const request: Request = { suite: 'quick', sizes: undefined, software: device.isSoftware };
  const best = async (prefix: string, of: (found: Measured) => number): Promise<number | undefined> => {
    const entry = entriesOf(device, request).find(({ id }) => id.startsWith(prefix));
    return entry && of(await measure(device, instruments, entry, effort));
  };
  const copyGbps = await best('copy/', ({ figures }) => figures.gbps ?? 0);
  const f16Tflops = await best('matmul/f16/', ({ figures }) => figures.tflops ?? 0);
  const f32Tflops = await best('matmul/f32/', ({ figures }) => figures.tflops ?? 0);
  if (copyGbps === undefined || f32Tflops === undefined)
    throw new Error('bench: the suite quick has no copy and no f32 product to measure rates by');
  return { copyGbps, ...(f16Tflops !== undefined && { f16Tflops }), f32Tflops, from: "this package's own copy and products, same run" };
}
