import type { Device, Tensor } from '@heed/core';

/** What is timed: records work; `restart` starts the clock again. */
export type Timed = (restart: () => void) => readonly Tensor[];

// WebGPU's own numbers: globals of these names exist in browsers only.
const usage = { queryResolve: 0x200, copySrc: 0x4, copyDst: 0x8, mapRead: 0x1, storage: 0x80 };
const mapModeRead = 1;

const release = (tensors: readonly Tensor[]): void => {
  for (const t of tensors) t.dispose();
};

/**
 * GPU time of spans of work by timestamp queries, and caches made cold between them.
 * A span lies between two timestamps in one command buffer: it holds the gaps between dispatches, as a caller would meet them.
 */
export class Stopwatch {
  readonly #device: Device;
  readonly #flushed: GPUBuffer | undefined;

  /** @param coldBytes written before each cold repetition; 0 where caches are no matter (a software device) */
  constructor(device: Device, coldBytes: number) {
    this.#device = device;
    this.#flushed =
      coldBytes > 0 ? device.gpu.createBuffer({ label: 'cache flush', size: coldBytes, usage: usage.copyDst | usage.storage }) : undefined;
  }

  /** Writes all of the flush buffer, behind what has been submitted. */
  #emptyCaches(): void {
    if (!this.#flushed) return;
    const { gpu, recorder } = this.#device;
    recorder.flush();
    const encoder = gpu.createCommandEncoder();
    encoder.clearBuffer(this.#flushed);
    gpu.queue.submit([encoder.finish()]);
  }

  /**
   * Milliseconds of each of `repeats` runs.
   * @param cold empties the caches before each, untimed
   */
  async gpuMs(work: Timed, repeats: number, cold: boolean): Promise<number[]> {
    const { gpu, recorder } = this.#device;
    const querySet = gpu.createQuerySet({ type: 'timestamp', count: 3 * repeats });
    const starts: number[] = [];
    for (let repeat = 0; repeat < repeats; repeat++) {
      if (cold) this.#emptyCaches();
      starts.push(3 * repeat);
      recorder.timestamp(querySet, 3 * repeat);
      const outputs = work(() => {
        starts[repeat] = 3 * repeat + 1;
        recorder.timestamp(querySet, 3 * repeat + 1);
      });
      recorder.timestamp(querySet, 3 * repeat + 2);
      recorder.flush();
      release(outputs);
    }
    const ticks = await this.#resolve(querySet, 3 * repeats);
    querySet.destroy();
    return starts.map((start, repeat) => Number((ticks[3 * repeat + 2] ?? 0n) - (ticks[start] ?? 0n)) / 1e6);
  }

  async #resolve(querySet: GPUQuerySet, count: number): Promise<BigUint64Array> {
    const { gpu } = this.#device;
    await this.#device.idle(); // throws what went wrong in the work; behind it, all that waited for pipelines is submitted
    const resolved = gpu.createBuffer({ label: 'timestamps', size: count * 8, usage: usage.queryResolve | usage.copySrc });
    const read = gpu.createBuffer({ label: 'timestamps read', size: count * 8, usage: usage.copyDst | usage.mapRead });
    const encoder = gpu.createCommandEncoder();
    encoder.resolveQuerySet(querySet, 0, count, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, read, 0, count * 8);
    gpu.queue.submit([encoder.finish()]);
    await read.mapAsync(mapModeRead);
    const ticks = new BigUint64Array(read.getMappedRange().slice(0));
    read.destroy();
    resolved.destroy();
    return ticks;
  }

  /** Milliseconds from the first record to the end of the GPU's work, of each of `repeats` runs; a backward pass with its forward. */
  async wallMs(work: Timed, repeats: number): Promise<number[]> {
    const times: number[] = [];
    for (let repeat = 0; repeat < repeats; repeat++) {
      await this.#device.idle();
      const started = performance.now();
      const outputs = work(() => {});
      release(outputs);
      await this.#device.idle();
      times.push(performance.now() - started);
    }
    return times;
  }

  /** Keeps the GPU busy for so long, so that its clock is up. @returns milliseconds spent */
  async warmUp(work: Timed, ms: number): Promise<number> {
    const started = performance.now();
    // few at first: how long one takes is not known
    for (let runs = 1; performance.now() - started < ms; runs = Math.min(8, 2 * runs)) {
      for (let i = 0; i < runs; i++) release(work(() => {}));
      await this.#device.idle();
    }
    return performance.now() - started;
  }

  /** The step of the clock: what all differences of timestamps are a multiple of, in nanoseconds. */
  async tickNs(): Promise<number> {
    const { gpu, recorder } = this.#device;
    const count = 256;
    const querySet = gpu.createQuerySet({ type: 'timestamp', count });
    for (let i = 0; i < count; i++) recorder.timestamp(querySet, i);
    recorder.flush();
    const ticks = await this.#resolve(querySet, count);
    querySet.destroy();
    const divisor = (a: bigint, b: bigint): bigint => (b === 0n ? a : divisor(b, a % b));
    let common = 0n;
    for (let i = 1; i < count; i++) common = divisor(common, (ticks[i] ?? 0n) - (ticks[0] ?? 0n));
    return Number(common);
  }

  dispose(): void {
    this.#flushed?.destroy();
  }
}
