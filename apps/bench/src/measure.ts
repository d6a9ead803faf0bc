import { type Device, type KernelTime, RandomStream, scope, tensor, type Tensor } from '@heed/core';
import type { BenchKernel, HeadArrays } from './kernels.js';
import type { BenchOptions } from './options.js';

/** Figures of one kernel at one length. */
export interface Measurement {
  readonly kernel: string;
  readonly tokens: number;
  /** Median of the timed runs, from recording to the end of the GPU's work. */
  readonly wallMs: number;
  /** Median time on the GPU by timestamp queries; null where the device has none. */
  readonly gpuMs: number | null;
  /** Work that the definition asks for, over GPU time (wall time where there is none). */
  readonly gflops: number;
  readonly peakBytes: number;
  /** Largest error of sampled rows over the largest value of their float64 reference. */
  readonly error: number;
  /** GPU time by kernel, of the median run. */
  readonly parts: readonly KernelTime[];
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

/** Inputs of a length: the same numbers on every device; q and k of unit variance, times 1/2 so that logits stay moderate. */
function inputs(device: Device, tokens: number, { heads, headDim, dtype }: BenchOptions): { q: Tensor; k: Tensor; v: Tensor } {
  const make = (name: string): Tensor => {
    const stream = new RandomStream(1, name);
    const values = Float32Array.from(stream.normal(tokens * heads * headDim), (value) => value / 2);
    return tensor(device, values, [1, tokens, heads, headDim], { dtype });
  };
  return { q: make('q'), k: make('k'), v: make('v') };
}

/** Head 0 as the device holds it, rounding to f16 included. */
async function headArrays(x: { q: Tensor; k: Tensor; v: Tensor }, { heads, headDim }: BenchOptions): Promise<HeadArrays> {
  const first = async (t: Tensor): Promise<Float64Array> => {
    const all = await t.read();
    return Float64Array.from({ length: all.length / heads }, (_, i) =>
      Number(all[Math.floor(i / headDim) * heads * headDim + (i % headDim)]),
    );
  };
  return { q: await first(x.q), k: await first(x.k), v: await first(x.v), headDim };
}

async function errorOf(kernel: BenchKernel, out: Tensor, head: HeadArrays, tokens: number, options: BenchOptions): Promise<number> {
  const { heads, headDim } = options;
  const values = await out.read();
  const rows = [...new Set([0, 1, tokens >> 2, tokens >> 1, tokens - 2, tokens - 1])].filter((t) => t >= 0 && t < tokens);
  let worst = 0;
  let largest = 0;
  for (const token of rows) {
    kernel.row(head, token, options).forEach((expected, c) => {
      worst = Math.max(worst, Math.abs(Number(values[token * heads * headDim + c]) - expected));
      largest = Math.max(largest, Math.abs(expected));
    });
  }
  return worst / largest;
}

/** Runs one kernel at one length: once to compile and for its error, then timed. */
export async function measure(
  device: Device,
  name: string,
  kernel: BenchKernel,
  tokens: number,
  options: BenchOptions,
): Promise<Measurement> {
  const x = inputs(device, tokens, options);
  const run = (): Tensor => scope(() => kernel.run(x.q, x.k, x.v, options));
  try {
    const first = run();
    const error = await errorOf(kernel, first, await headArrays(x, options), tokens, options);
    first.dispose();

    device.resetPeak();
    const walls: number[] = [];
    for (let repeat = 0; repeat < options.repeats; repeat++) {
      const started = performance.now();
      run().dispose();
      await device.idle();
      walls.push(performance.now() - started);
    }
    const { peakBytes } = device.memory();

    const profiles: KernelTime[][] = [];
    if (device.capabilities.timestamps) {
      for (let repeat = 0; repeat < options.repeats; repeat++) profiles.push((await device.profile(() => run().dispose())).kernels);
    }
    const total = (parts: readonly KernelTime[]): number => parts.reduce((sum, { ms }) => sum + ms, 0);
    const gpuMs = profiles.length > 0 ? median(profiles.map(total)) : null;
    const wallMs = median(walls);
    const flops = 4 * options.headDim * options.heads * kernel.pairs(tokens, options);
    return {
      kernel: name,
      tokens,
      wallMs,
      gpuMs,
      gflops: flops / ((gpuMs ?? wallMs) * 1e6),
      peakBytes,
      error,
      parts: profiles.find((parts) => total(parts) === gpuMs) ?? [],
    };
  } finally {
    for (const t of Object.values(x)) t.dispose();
  }
}
