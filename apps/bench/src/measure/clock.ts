import type { Device, Tensor } from '@heed/core';
import { defineKernel, empty, write } from '@heed/core/~internal';
import type { Stopwatch } from './stopwatch.js';

// Multiply-adds, each waiting for the one before: its time is the inverse of the clock of the multiprocessors.
// tile    256 lanes, every one of them the same work
// bytes   none: no sum is ever negative, but a compiler cannot know
const pulse = defineKernel({
  name: 'bench-pulse',
  bindings: { out: write('f32') },
  uniforms: { steps: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      var sum = f32(lane);
      for (var step = 0u; step < uniforms.steps; step += 1u) { sum = fma(sum, 0.75, 0.5); }
      if (sum < 0.0) { store_out(group.x, sum); }
    }`,
});

/** Enough to fill any GPU of today a few times. */
const WORKGROUPS = 1024;
/** Some thirty microseconds a pulse. */
const STEPS = 4096;
/** A pulse of the warm-up is so many times longer. */
const LONGER = 32;

/**
 * Tells whether the GPU's clock is up: a GPU at rest, or one between two states, runs at a fraction of its speed, and a time taken then is
 * true of nothing else.
 */
export class Clock {
  readonly #device: Device;
  readonly #stopwatch: Stopwatch;
  readonly #steps: number;
  #fastest = Infinity;

  /** @param steps multiply-adds a lane and pulse */
  constructor(device: Device, stopwatch: Stopwatch, steps: number = STEPS) {
    this.#device = device;
    this.#stopwatch = stopwatch;
    this.#steps = steps;
  }

  #pulse(steps: number): readonly Tensor[] {
    const out = empty(this.#device, [WORKGROUPS], 'f32');
    pulse.run(this.#device, { spec: {}, tensors: { out }, uniforms: { steps }, grid: [WORKGROUPS] });
    return [out];
  }

  /** Time of a pulse now, in milliseconds. */
  async read(): Promise<number> {
    const ms = Math.min(...(await this.#stopwatch.gpuMs(() => this.#pulse(this.#steps), 5, false)));
    this.#fastest = Math.min(this.#fastest, ms);
    return ms;
  }

  /** The clock at a reading, as a share of the fastest that was read. */
  share(ms: number): number {
    return this.#fastest / ms;
  }

  /** Keeps every multiprocessor busy for so long, without the gaps that short work has between its submissions. */
  async warmUp(ms: number): Promise<void> {
    await this.#stopwatch.warmUp(() => this.#pulse(LONGER * this.#steps), ms);
  }
}
