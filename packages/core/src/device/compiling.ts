import type { Pipeline } from './device.js';

interface Waiting {
  /** Resolves when the pipeline is ready. */
  done: Promise<void>;
  /** Makes it ready at once. */
  now: () => void;
}

/** Pipelines that are not ready: they compile beside each other and beside what is recorded. */
export class Compiling {
  /** Texts shorter than this compile at once, in some milliseconds: not worth it that anything waits for them. */
  shortText = 4096;
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
      pipeline.pipeline = made;
      pipeline.compileMs = performance.now() - started;
      if (this.waiting.delete(pipeline) && this.waiting.size === 0) this.whenReady();
    };
    const create = (): GPUComputePipeline =>
      this.guarded(`compiling kernel ${pipeline.name}`, () => this.gpu.createComputePipeline(descriptor));
    if (pipeline.wgsl.length < this.shortText) {
      ready(create());
      return;
    }
    const now = (): void => {
      if (this.waiting.has(pipeline)) ready(create());
    };
    // what is refused is made again, for an error that surfaces as all others do
    const done = this.gpu.createComputePipelineAsync(descriptor).then((made) => {
      if (this.waiting.has(pipeline)) ready(made);
    }, now);
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
