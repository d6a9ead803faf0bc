import type { Storage } from './pool.js';

/** A layout of bind groups; kernels whose bindings are of one kind share it. */
export interface BindLayout {
  number: number;
  layout: GPUBindGroupLayout;
}

/** The part of a buffer that a kernel binds, where that is not the whole buffer. */
export interface BufferWindow {
  /** Bytes from the start of the buffer. */
  offset: number;
  /** Bytes. */
  size: number;
}

/** A window a buffer, undefined for a whole one; no list where all are bound whole. */
export type Windows = readonly (BufferWindow | undefined)[] | undefined;

/** A bind group and what it binds. */
export class BoundGroup {
  /** Another one whose hash is the same. */
  next: BoundGroup | undefined = undefined;
  /** The batch that last used it; kept by the recorder. */
  batch = 0;

  constructor(
    readonly group: GPUBindGroup,
    readonly hash: number,
    readonly layout: BindLayout,
    readonly storages: readonly Storage[],
    readonly windows: Windows,
  ) {}
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
    private readonly create: (label: string, layout: GPUBindGroupLayout, storages: readonly Storage[], windows: Windows) => GPUBindGroup,
    private readonly most = 8192,
  ) {}

  /** The group that binds these buffers. @param hash of the layout and the buffers; groups that differ in their windows only are few */
  find(hash: number, layout: BindLayout, storages: readonly Storage[], windows: Windows): BoundGroup | undefined {
    let bound = this.byHash.get(hash);
    search: for (; bound !== undefined; bound = bound.next) {
      if (bound.layout !== layout) continue;
      const others = bound.storages;
      for (let i = 0; i < storages.length; i++) if (storages[i] !== others[i]) continue search;
      if (bound.windows === windows || sameWindows(bound.windows, windows, storages.length)) return bound;
    }
    return undefined;
  }

  /** Makes and keeps a group that `find` did not find. */
  make(hash: number, layout: BindLayout, storages: readonly Storage[], windows: Windows, label: string): BoundGroup {
    if (this.size >= this.most) this.clear();
    const made = new BoundGroup(this.create(label, layout.layout, storages, windows), hash, layout, [...storages], windows);
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

function sameWindows(a: Windows, b: Windows, count: number): boolean {
  for (let i = 0; i < count; i++) if (a?.[i]?.offset !== b?.[i]?.offset || a?.[i]?.size !== b?.[i]?.size) return false;
  return true;
}
