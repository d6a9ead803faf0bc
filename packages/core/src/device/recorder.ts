import type { BoundGroup } from './bind-groups.js';
import { bufferUsage } from './constants.js';
import type { Storage } from './pool.js';

export const slotBytes = 256;
const slotWords = slotBytes / 4;
const slots = 1024;
const dispatchesPerBatch = 128;
/** Writes up to this travel in the ring when their target is in use: no batch has to end for them. */
const smallWrite = 16 * slotBytes;
/** What waits for pipelines at most, in operations and in bytes of copies and of buffers to be freed. */
const mostHeld = 10_000;
const mostHeldBytes = 512 * 1024 * 1024;

/** Workgroups along x, y and z, 1 where left out; or where an earlier dispatch wrote them. */
export type Grid = readonly number[] | { indirect: Storage; byteOffset: number; length?: undefined };

export interface TimestampSlot {
  kernel: string;
  index: number;
}

/** A pipeline, once it has compiled. */
interface Compiled {
  name: string;
  pipeline: GPUComputePipeline | undefined;
}

/**
 * Records dispatches into one compute pass and submits them in batches. Nothing waits. Uniform values go through one
 * ring that is written ahead of each submission (the queue keeps the order).
 *
 * Pipelines compile beside each other and beside this: from the first dispatch whose pipeline is not ready, all that is asked for is
 * held, and done in its order by `release`.
 */
export class Recorder {
  /** Number of the batch that is being recorded. */
  batch = 1;
  readonly uniformBuffer: GPUBuffer;
  private readonly staged = new Uint8Array(slotBytes * slots);
  /** The ring as it will be written. */
  readonly words: Uint32Array = new Uint32Array(this.staged.buffer);
  readonly floats: Float32Array = new Float32Array(this.staged.buffer);
  private readonly offsets: number[] = [0];
  private usedSlots = 0;
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  /** The pipeline that the pass has set: setting one costs as much as a dispatch. */
  private pipeline: GPUComputePipeline | undefined;
  private dispatches = 0;
  /** Names of what ran in this batch. */
  private kernels: Set<string> = new Set();
  private held: (() => void)[] | undefined;
  private heldBytes = 0;
  private timestamps: { querySet: GPUQuerySet; slots: TimestampSlot[]; capacity: number } | undefined;

  constructor(
    private readonly gpu: GPUDevice,
    private readonly onSubmit: (kernels: ReadonlySet<string>, submit: () => void) => void,
    /** Makes every pipeline ready at once, and releases what is held. */
    private readonly compileNow: () => void,
  ) {
    this.uniformBuffer = gpu.createBuffer({
      label: 'uniform ring',
      size: slotBytes * slots,
      usage: bufferUsage.UNIFORM | bufferUsage.COPY_SRC | bufferUsage.COPY_DST,
    });
  }

  /**
   * Room for the uniform values of the next dispatch, which takes it: the first word in the ring. Submits first when the batch is full.
   * @param needed slots of 256 bytes
   */
  uniformRoom(needed: number): number {
    if (this.usedSlots + needed > slots || this.dispatches >= dispatchesPerBatch) this.flush();
    return this.usedSlots * slotWords;
  }

  /** Records one dispatch, whose uniform values lie in the next `uniformSlots` slots of the ring. */
  dispatch(kernel: Compiled, bound: BoundGroup, uniformSlots: number, grid: Grid): void {
    if (this.held !== undefined || kernel.pipeline === undefined) {
      this.holdDispatch(kernel, bound, uniformSlots, grid);
      return;
    }
    const pass = this.timestamps ? this.timedPass(kernel.name) : (this.pass ?? this.openPass());
    if (kernel.pipeline !== this.pipeline) {
      pass.setPipeline((this.pipeline = kernel.pipeline));
      this.kernels.add(kernel.name);
    }
    this.offsets[0] = this.usedSlots * slotBytes;
    this.usedSlots += uniformSlots;
    pass.setBindGroup(0, bound.group, this.offsets);
    if (grid.length === 1) pass.dispatchWorkgroups(grid[0] as number);
    else if (grid.length !== undefined) pass.dispatchWorkgroups(grid[0] ?? 1, grid[1], grid[2]);
    else {
      grid.indirect.lastBatch = this.batch;
      pass.dispatchWorkgroupsIndirect(grid.indirect.buffer, grid.byteOffset);
    }
    if (bound.batch !== this.batch) this.use(bound);
    this.dispatches++;
    if (this.timestamps) this.endPass();
  }

  private holdDispatch(kernel: Compiled, bound: BoundGroup, uniformSlots: number, grid: Grid): void {
    const from = this.usedSlots * slotWords;
    const values = this.words.slice(from, from + uniformSlots * slotWords);
    if (!this.held) {
      this.flush(); // what was recorded before need not wait
      this.held = [];
    }
    this.use(bound);
    if (grid.length === undefined) grid.indirect.lastBatch = this.batch;
    this.later(() => {
      this.words.set(values, this.uniformRoom(uniformSlots));
      this.dispatch(kernel, bound, uniformSlots, grid);
    });
  }

  /** Does `work` in its turn: at once, or behind what is held. @param bytes of memory that `work` keeps */
  later(work: () => void, bytes = 0): void {
    if (!this.held) {
      work();
      return;
    }
    this.held.push(work);
    this.heldBytes += bytes;
    if (this.held.length > mostHeld || this.heldBytes > mostHeldBytes) this.compileNow();
  }

  /** Records what was held; all pipelines are ready. */
  release(): void {
    const { held } = this;
    if (!held) return;
    this.held = undefined;
    this.heldBytes = 0;
    for (const work of held) work();
    this.flush();
  }

  private use(bound: BoundGroup): void {
    bound.batch = this.batch;
    for (const storage of bound.storages) storage.lastBatch = this.batch;
  }

  copy(from: Storage, fromByte: number, to: Storage | GPUBuffer, toByte: number, bytes: number): void {
    from.lastBatch = this.batch;
    if ('references' in to) to.lastBatch = this.batch;
    if (this.held) {
      this.later(() => this.copy(from, fromByte, to, toByte, bytes));
      return;
    }
    this.endPass();
    const target = 'references' in to ? to.buffer : to;
    this.openEncoder().copyBufferToBuffer(from.buffer, fromByte, target, toByte, bytes);
    this.dispatches++;
  }

  /** Writes from the host, after everything that was recorded before. */
  write(storage: Storage, byteOffset: number, bytes: Uint8Array): void {
    if (storage.lastBatch === this.batch) {
      if (this.held) {
        const copied = bytes.slice();
        this.later(() => this.write(storage, byteOffset, copied), bytes.byteLength);
        return;
      }
      if (bytes.byteLength <= smallWrite) {
        this.writeInTurn(storage, byteOffset, bytes);
        return;
      }
      this.flush();
    }
    const even = bytes.byteLength & ~3;
    if (even > 0) this.gpu.queue.writeBuffer(storage.buffer, byteOffset, bytes.buffer as ArrayBuffer, bytes.byteOffset, even);
    if (even < bytes.byteLength) {
      const tail = new Uint8Array(4); // WebGPU writes multiples of 4 bytes; the tail of a buffer is padding
      tail.set(bytes.subarray(even));
      this.gpu.queue.writeBuffer(storage.buffer, byteOffset + even, tail);
    }
  }

  /** A small write behind what this batch has recorded: the ring carries it, a copy puts it in place. */
  private writeInTurn(storage: Storage, byteOffset: number, bytes: Uint8Array): void {
    const taken = Math.ceil(bytes.byteLength / slotBytes);
    const at = this.uniformRoom(taken) * 4;
    const padded = (bytes.byteLength + 3) & ~3;
    this.staged.fill(0, at + bytes.byteLength, at + padded);
    this.staged.set(bytes, at);
    this.usedSlots += taken;
    this.endPass();
    this.openEncoder().copyBufferToBuffer(this.uniformBuffer, at, storage.buffer, byteOffset, padded);
    storage.lastBatch = this.batch;
    this.dispatches++;
  }

  flush(): void {
    this.endPass();
    if (!this.encoder) return;
    const encoder = this.encoder;
    const kernels = this.kernels;
    const used = this.usedSlots;
    this.encoder = undefined;
    this.kernels = new Set();
    this.dispatches = 0;
    this.usedSlots = 0;
    this.batch++;
    this.onSubmit(kernels, () => {
      if (used > 0) this.gpu.queue.writeBuffer(this.uniformBuffer, 0, this.staged, 0, used * slotBytes);
      this.gpu.queue.submit([encoder.finish()]);
    });
  }

  /** From now on each dispatch runs in a pass of its own between two timestamps. */
  startTiming(capacity: number): void {
    this.flush();
    this.timestamps = { querySet: this.gpu.createQuerySet({ type: 'timestamp', count: capacity * 2 }), slots: [], capacity };
  }

  /** Ends timing; resolves the timestamps into `into` and says which kernel each pair belongs to. */
  stopTiming(into: (querySet: GPUQuerySet, count: number, encoder: GPUCommandEncoder) => void): TimestampSlot[] {
    const timing = this.timestamps;
    if (!timing) return [];
    this.endPass();
    if (timing.slots.length > 0) into(timing.querySet, timing.slots.length * 2, this.openEncoder());
    this.flush();
    timing.querySet.destroy();
    this.timestamps = undefined;
    return timing.slots;
  }

  /** Writes a timestamp at the end of everything recorded so far, without a pass of its own for each dispatch as timing has. */
  timestamp(querySet: GPUQuerySet, index: number): void {
    if (this.held) {
      this.later(() => this.timestamp(querySet, index));
      return;
    }
    this.endPass();
    this.openEncoder()
      .beginComputePass({ timestampWrites: { querySet, endOfPassWriteIndex: index } })
      .end();
  }

  /** Frees a buffer behind the work that uses it. */
  destroyBuffer({ buffer, bytes }: Storage): void {
    if (!this.held) {
      buffer.destroy();
      return;
    }
    this.later(() => {
      this.flush();
      buffer.destroy();
    }, bytes);
  }

  destroy(): void {
    this.uniformBuffer.destroy();
  }

  private openEncoder(): GPUCommandEncoder {
    this.encoder ??= this.gpu.createCommandEncoder();
    return this.encoder;
  }

  private openPass(): GPUComputePassEncoder {
    return (this.pass ??= this.openEncoder().beginComputePass());
  }

  private timedPass(kernel: string): GPUComputePassEncoder {
    const timing = this.timestamps;
    if (!timing || timing.slots.length >= timing.capacity) return this.openPass();
    this.endPass();
    const index = timing.slots.length;
    timing.slots.push({ kernel, index });
    this.pass = this.openEncoder().beginComputePass({
      timestampWrites: { querySet: timing.querySet, beginningOfPassWriteIndex: index * 2, endOfPassWriteIndex: index * 2 + 1 },
    });
    return this.pass;
  }

  private endPass(): void {
    this.pass?.end();
    this.pass = undefined;
    this.pipeline = undefined;
  }
}
