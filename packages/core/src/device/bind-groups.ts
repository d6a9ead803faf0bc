import type { Storage } from './pool.js';

/** A layout of bind groups; kernels whose bindings are of one kind share it. */
export interface BindLayout {
  number: number;
  layout: GPUBindGroupLayout;
}

/** The part of a buffer that a kernel binds. */
export interface BufferWindow {
  storage: Storage;
  /** Bytes from the start of the buffer. */
  offset: number;
  /** Bytes. */
  size: number;
}

/** A bind group and what it binds. */
export class BoundGroup {
  /** Another one whose hash is the same. */
  next: BoundGroup | undefined;
  readonly storages: readonly Storage[];
  private readonly offsets: readonly number[];
  private readonly sizes: readonly number[];

  constructor(
    readonly group: GPUBindGroup,
    readonly hash: number,
    private readonly layout: BindLayout,
    windows: readonly BufferWindow[],
  ) {
    this.storages = windows.map(({ storage }) => storage);
    this.offsets = windows.map(({ offset }) => offset);
    this.sizes = windows.map(({ size }) => size);
  }

  binds(layout: BindLayout, windows: readonly BufferWindow[]): boolean {
    if (layout !== this.layout) return false;
    for (let i = 0; i < windows.length; i++) {
      const window = windows[i] as BufferWindow;
      if (window.storage !== this.storages[i] || window.offset !== this.offsets[i] || window.size !== this.sizes[i]) return false;
    }
    return true;
  }
}

/**
 * Bind groups by layout, buffers and windows: a repeated step is handed the same buffers and finds its groups again.
 * Found by a hash of numbers, as this runs for each dispatch. A group goes with the first of its buffers that is
 * destroyed; at `most` groups all are dropped, since shapes that vary without end must not grow the cache.
 */
export class BindGroups {
  size = 0;
  private readonly byHash: Map<number, BoundGroup> = new Map();

  constructor(
    private readonly create: (label: string, layout: GPUBindGroupLayout, windows: readonly BufferWindow[]) => GPUBindGroup,
    private readonly most = 8192,
  ) {}

  /** The group that binds `windows`; made, and labelled, when there is none. */
  get(layout: BindLayout, windows: readonly BufferWindow[], label: string): BoundGroup {
    const hash = hashOf(layout, windows);
    for (let bound = this.byHash.get(hash); bound; bound = bound.next) if (bound.binds(layout, windows)) return bound;
    if (this.size >= this.most) this.clear();
    const made = new BoundGroup(this.create(label, layout.layout, windows), hash, layout, windows);
    made.next = this.byHash.get(hash);
    this.byHash.set(hash, made);
    for (const storage of made.storages) storage.boundBy.add(made);
    this.size++;
    return made;
  }

  /** Drops the groups that bind a buffer. */
  drop(storage: Storage): void {
    for (const bound of storage.boundBy) {
      this.unlink(bound);
      for (const other of bound.storages) if (other !== storage) other.boundBy.delete(bound);
    }
    storage.boundBy.clear();
  }

  clear(): void {
    for (const first of this.byHash.values())
      for (let bound: BoundGroup | undefined = first; bound; bound = bound.next)
        for (const storage of bound.storages) storage.boundBy.clear();
    this.byHash.clear();
    this.size = 0;
  }

  private unlink(bound: BoundGroup): void {
    this.size--;
    const first = this.byHash.get(bound.hash);
    if (first === bound) {
      if (bound.next) this.byHash.set(bound.hash, bound.next);
      else this.byHash.delete(bound.hash);
      return;
    }
    let before = first;
    while (before && before.next !== bound) before = before.next;
    if (before) before.next = bound.next;
  }
}

/** Of buffers alone: groups that differ in their windows only are few. A small integer on every engine (30 bits). */
function hashOf(layout: BindLayout, windows: readonly BufferWindow[]): number {
  let hash = layout.number;
  for (let i = 0; i < windows.length; i++) hash = (hash << 11) ^ (hash >>> 21) ^ (windows[i] as BufferWindow).storage.id;
  return hash & 0x3fffffff;
}
