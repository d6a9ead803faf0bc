import type { Pipeline } from './device.js';

interface Waiting {
  /** Resolves when the pipeline is ready. */
  done: Promise<void>;
  /** Makes it ready at once. */
  now: () => void;
}

/** Pipelines that are not ready: they compile beside each other and beside what is recorded. */
export class Compiling {
  private readonly waiting: Map<Pipeline, Waiting> = new Map();

  constructor(
    private readonly gpu: GPUDevice,
    private readonly guarded: (what: string, create: () => GPUComputePipeline) => GPUComputePipeline,
    /** Called whenever the last one that was asked for is ready. */
    private readonly whenReady: () => void,
  ) {}

  add(pipeline: Pipeline, descriptor: GPUComputePipelineDescriptor): void {
    const started = performance.now();
    const ready = (made: GPUComputePipeline): void => {
      if (!this.waiting.delete(pipeline)) return;
      pipeline.pipeline = made;
      pipeline.compileMs = performance.now() - started;
      if (this.waiting.size === 0) this.whenReady();
    };
    const now = (): void => ready(this.guarded(`compiling kernel ${pipeline.name}`, () => this.gpu.createComputePipeline(descriptor)));
    // what is refused is made again, for an error that surfaces as all others do
    const done = this.gpu.createComputePipelineAsync(descriptor).then(ready, now);
    this.waiting.set(pipeline, { done, now });
  }

  /** Makes all ready at once, one after the other. */
  finish(): void {
    for (const { now } of this.waiting.values()) now();
  }

  /** Resolves when all are ready, also those that are asked for meanwhile. @throws what `lost` rejects with */
  async done(lost: Promise<never>): Promise<void> {
    while (this.waiting.size > 0) await Promise.race([Promise.all(Array.from(this.waiting.values(), ({ done }) => done)), lost]);
  }

  /** Forgets them: the device is gone. */
  clear(): void {
    this.waiting.clear();
  }
}
