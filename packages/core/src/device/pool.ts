import type { BoundGroup } from './bind-groups.js';
import { bufferUsage } from './constants.js';
import { formatBytes, HeedError } from '../errors.js';

/** A GPU buffer with a reference count; tensors and their views share one. */
export class Storage {
  /** The pool that it goes back to, one a device. */
  readonly owner: BufferPool;
  readonly id: number;
  readonly buffer: GPUBuffer;
  /** Bytes of the buffer (its size class, not what was asked for). */
  readonly bytes: number;
  references = 1;
  /** The batch that last used this buffer; a write from the host must not overtake it. */
  lastBatch = 0;
  destroyed = false;
  /** The GPU could not make this buffer: it must not be handed out again. */
  failed = false;
  /** Bind groups that name this buffer; they go with it. */
  readonly boundBy: Set<BoundGroup> = new Set();

  constructor(owner: BufferPool, id: number, buffer: GPUBuffer, bytes: number) {
    this.owner = owner;
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

/** What a buffer is for; text is made of a shape only where somebody reads it. */
export type BufferLabel = string | { shape: readonly number[]; dtype: string };

function labelText(label: BufferLabel): string {
  return typeof label === 'string' ? label : `tensor [${label.shape.join(', ')}] ${label.dtype}`;
}

const smallest = 256;

/** Size class of an allocation: four classes a power of two, so that at most a quarter is wasted (256 bytes at least). */
export function sizeClass(bytes: number): number {
  if (bytes <= smallest) return smallest;
  // of a number below 2^32 the leading bit is counted, of a larger one it is found by the logarithm
  const power = bytes < 2 ** 32 ? 0x80000000 >>> Math.clz32(bytes) : 2 ** Math.floor(Math.log2(bytes));
  const step = power / 4;
  return Math.ceil(bytes / step) * step;
}

/** The free buffers of one size class: a heap by id, the lowest first. */
interface Shelf {
  bytes: number;
  free: Storage[];
}

/**
 * Buffers by size class. A released buffer is handed out again at once: the queue runs in order, so a later batch
 * cannot overtake an earlier one. What is kept free stays within a quarter of the peak of live bytes; at that bound a larger
 * buffer, up to four times the size, is handed out before others are destroyed. The lowest id goes
 * first, so that which buffer is handed out depends on what is free alone: a repeated step finds its buffers, and with
 * them its bind groups, again.
 */
export class BufferPool {
  private readonly shelves: Map<number, Shelf> = new Map();
  /** The shelf that was used last, and what was asked of it: the next buffer is mostly of the same size. */
  private shelf: Shelf = { bytes: 0, free: [] };
  private asked = -1;
  private nextId = 1;
  private live = 0;
  private peak = 0;
  private pooled = 0;
  private count = 0;

  private readonly largest: number;

  constructor(
    private readonly gpu: GPUDevice,
    private readonly limits: { maxBufferSize: number },
    private readonly destroyBuffer: (storage: Storage) => void,
    private readonly beforeDestroy: () => void,
    private readonly guarded: <T>(what: string, create: () => T, failed: () => void) => T,
  ) {
    this.largest = Math.floor(limits.maxBufferSize / 4) * 4;
  }

  allocate(bytes: number, wanted: BufferLabel): Storage {
    if (bytes !== this.asked) this.ask(bytes, wanted);
    const { free } = this.shelf;
    return free.length > 0 ? this.handOut(takeLowest(free)) : this.make(this.shelf.bytes, wanted);
  }

  private ask(bytes: number, wanted: BufferLabel): void {
    if (bytes > this.limits.maxBufferSize) {
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `core: "${labelText(wanted)}" needs a buffer of ${formatBytes(bytes)}, this device allows ${formatBytes(this.limits.maxBufferSize)}; ` +
          'split the batch or heads axis, or use a device with larger limits',
      );
    }
    this.shelf = this.shelfOf(Math.min(sizeClass(bytes), this.largest));
    this.asked = bytes;
  }

  private shelfOf(bytes: number): Shelf {
    let shelf = this.shelves.get(bytes);
    if (!shelf) this.shelves.set(bytes, (shelf = { bytes, free: [] }));
    return shelf;
  }

  private make(size: number, wanted: BufferLabel): Storage {
    const ceiling = 1.25 * Math.max(this.peak, this.live + size);
    if (this.live + this.pooled + size > ceiling) {
      const larger = this.takeLarger(size);
      if (larger) return this.handOut(larger);
      this.trim(Math.max(0, ceiling - this.live - size));
    }
    const label = labelText(wanted);
    const usage = bufferUsage.STORAGE | bufferUsage.COPY_SRC | bufferUsage.COPY_DST | bufferUsage.INDIRECT;
    const storage: Storage = this.guarded(
      `allocating ${formatBytes(size)} for "${label}"`,
      () => new Storage(this, this.nextId++, this.gpu.createBuffer({ label, size, usage }), size),
      () => this.discard(storage),
    );
    this.count++;
    this.live += size;
    if (this.live > this.peak) this.peak = this.live;
    return storage;
  }

  private handOut(storage: Storage): Storage {
    this.pooled -= storage.bytes;
    this.live += storage.bytes;
    if (this.live > this.peak) this.peak = this.live;
    storage.references = 1;
    return storage;
  }

  /** A free buffer of at most four times the size: better than to destroy it and make one, as steps of changing lengths would all the time. */
  private takeLarger(size: number): Storage | undefined {
    for (let larger = sizeClass(size + 1); larger <= 4 * size; larger = sizeClass(larger + 1)) {
      const free = this.shelves.get(larger)?.free;
      if (free && free.length > 0) return takeLowest(free);
    }
    return undefined;
  }

  retain(storage: Storage): void {
    storage.references++;
  }

  release(storage: Storage): void {
    storage.references--;
    if (storage.references > 0 || storage.destroyed) return;
    this.live -= storage.bytes;
    if (storage.failed) {
      this.destroy(storage);
      return;
    }
    this.pooled += storage.bytes;
    const { shelf } = this;
    addById(shelf.bytes === storage.bytes ? shelf.free : this.shelfOf(storage.bytes).free, storage);
  }

  /** Destroys free buffers, those that lay idle longest first and the larger ones of a batch, until at most `keepBytes` are pooled. */
  trim(keepBytes = 0): void {
    if (this.pooled <= keepBytes) return;
    this.beforeDestroy();
    const idle = [...this.shelves.values()].flatMap(({ free }) => free).sort((a, b) => a.lastBatch - b.lastBatch || b.bytes - a.bytes);
    for (const storage of idle) {
      if (this.pooled <= keepBytes) break;
      this.pooled -= storage.bytes;
      this.destroy(storage);
    }
    // in the order of ids, which is a heap
    for (const shelf of this.shelves.values()) shelf.free = shelf.free.filter(({ destroyed }) => !destroyed).sort((a, b) => a.id - b.id);
  }

  report(): PoolReport {
    return { liveBytes: this.live, peakBytes: this.peak, pooledBytes: this.pooled, buffers: this.count };
  }

  resetPeak(): void {
    this.peak = this.live;
  }

  /** Out of memory is told later: by then the buffer may be in use, or free already. */
  private discard(storage: Storage): void {
    storage.failed = true;
    this.trim(0); // the buffer itself if it is free, and room for what is tried next
  }

  private destroy(storage: Storage): void {
    this.count--;
    storage.destroyed = true;
    this.destroyBuffer(storage);
  }
}

/** Puts a buffer into a heap by id. */
function addById(heap: Storage[], storage: Storage): void {
  let at = heap.length;
  heap.push(storage);
  while (at > 0) {
    const above = (at - 1) >> 1;
    const other = heap[above] as Storage;
    if (other.id <= storage.id) break;
    heap[at] = other;
    at = above;
  }
  heap[at] = storage;
}

/** Takes the buffer with the lowest id out of a heap that is not empty. */
function takeLowest(heap: Storage[]): Storage {
  const lowest = heap[0] as Storage;
  const rest = heap.length - 1;
  const last = heap[rest] as Storage;
  let at = 0;
  for (let below = 1; below < rest; below = 2 * at + 1) {
    const right = heap[below + 1] as Storage;
    if (below + 1 < rest && right.id < (heap[below] as Storage).id) below++;
    const next = heap[below] as Storage;
    if (next.id >= last.id) break;
    heap[at] = next;
    at = below;
  }
  heap[at] = last;
  heap.pop();
  return lowest;
}
