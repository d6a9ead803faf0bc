import { bufferUsage } from './constants.js';
import { formatBytes, HeedError } from '../errors.js';

/** A GPU buffer with a reference count; tensors and their views share one. */
export class Storage {
  readonly id: number;
  readonly buffer: GPUBuffer;
  /** Bytes of the buffer (its size class, not what was asked for). */
  readonly bytes: number;
  references = 1;
  /** The batch that last used this buffer; a write from the host must not overtake it. */
  lastBatch = 0;
  destroyed = false;
  /** Bind groups that name this buffer; they go with it. */
  readonly bindGroups: Set<string> = new Set();

  constructor(id: number, buffer: GPUBuffer, bytes: number) {
    this.id = id;
    this.buffer = buffer;
    this.bytes = bytes;
  }
}

export interface PoolReport {
  liveBytes: number;
  peakBytes: number;
  pooledBytes: number;
  buffers: number;
}

const smallest = 256;

/** Size class of an allocation: four classes a power of two, so that at most a quarter is wasted (256 bytes at least). */
export function sizeClass(bytes: number): number {
  if (bytes <= smallest) return smallest;
  const power = 2 ** Math.floor(Math.log2(bytes));
  const step = power / 4;
  return Math.ceil(bytes / step) * step;
}

/**
 * Buffers by size class. A released buffer is handed out again at once: the queue runs in order, so a later batch
 * cannot overtake an earlier one. What is kept free stays within a quarter of the peak of live bytes.
 */
export class BufferPool {
  private readonly free: Map<number, Storage[]> = new Map();
  private nextId = 1;
  private live = 0;
  private peak = 0;
  private pooled = 0;
  private count = 0;

  constructor(
    private readonly gpu: GPUDevice,
    private readonly limits: { maxBufferSize: number },
    private readonly onDestroy: (storage: Storage) => void,
    private readonly beforeDestroy: () => void,
    private readonly guarded: <T>(what: string, create: () => T) => T,
  ) {}

  allocate(bytes: number, label: string): Storage {
    if (bytes > this.limits.maxBufferSize) {
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `core: "${label}" needs a buffer of ${formatBytes(bytes)}, this device allows ${formatBytes(this.limits.maxBufferSize)}; ` +
          'split the batch or heads axis, or use a device with larger limits',
      );
    }
    const size = Math.min(sizeClass(bytes), Math.floor(this.limits.maxBufferSize / 4) * 4);
    const list = this.free.get(size);
    const reused = list?.pop();
    if (reused) {
      this.pooled -= size;
      reused.references = 1;
      this.grow(size);
      return reused;
    }
    const ceiling = 1.25 * Math.max(this.peak, this.live + size);
    if (this.live + this.pooled + size > ceiling) this.trim(Math.max(0, ceiling - this.live - size));
    const buffer = this.guarded(`allocating ${formatBytes(size)} for "${label}"`, () =>
      this.gpu.createBuffer({
        label,
        size,
        usage: bufferUsage.STORAGE | bufferUsage.COPY_SRC | bufferUsage.COPY_DST | bufferUsage.INDIRECT,
      }),
    );
    this.count++;
    this.grow(size);
    return new Storage(this.nextId++, buffer, size);
  }

  retain(storage: Storage): void {
    storage.references++;
  }

  release(storage: Storage): void {
    storage.references--;
    if (storage.references > 0 || storage.destroyed) return;
    this.live -= storage.bytes;
    this.pooled += storage.bytes;
    const list = this.free.get(storage.bytes);
    if (list) list.push(storage);
    else this.free.set(storage.bytes, [storage]);
  }

  /** Destroys free buffers, oldest of the largest classes first, until at most `keepBytes` are pooled. */
  trim(keepBytes = 0): void {
    if (this.pooled <= keepBytes) return;
    this.beforeDestroy();
    const classes = [...this.free.keys()].sort((a, b) => b - a);
    for (const size of classes) {
      const list = this.free.get(size) ?? [];
      while (list.length > 0 && this.pooled > keepBytes) {
        const storage = list.shift();
        if (!storage) break;
        this.pooled -= size;
        this.count--;
        storage.destroyed = true;
        this.onDestroy(storage);
        storage.buffer.destroy();
      }
      if (list.length === 0) this.free.delete(size);
    }
  }

  report(): PoolReport {
    return { liveBytes: this.live, peakBytes: this.peak, pooledBytes: this.pooled, buffers: this.count };
  }

  resetPeak(): void {
    this.peak = this.live;
  }

  private grow(size: number): void {
    this.live += size;
    if (this.live > this.peak) this.peak = this.live;
  }
}
