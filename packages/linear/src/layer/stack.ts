import { type Bytes, HeedError, type Snapshot, type State, type Tensor } from '@heed/core';
import { holdsTensors } from '@heed/core/~internal';
import type { HeldTensors } from '../scan/held-tensors.js';

/** States of the layers of a model, as one. */
export class StackState implements State {
  /** @param states are taken over */
  constructor(
    readonly kind: string,
    private readonly states: readonly HeldTensors[],
  ) {
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => states });
  }

  get tokens(): number {
    return this.states[0]?.tokens ?? 0;
  }

  /** The state of a layer, from 0. */
  layer(index: number): HeldTensors {
    const state = this.states[index];
    if (!state) throw new HeedError('INVALID_ARGUMENT', `${this.kind}: layer ${index} of ${this.states.length}; layers count from 0`);
    return state;
  }

  bytes(): Bytes {
    const sum = (name: 'payload' | 'metadata'): number => this.states.reduce((total, state) => total + state.bytes()[name], 0);
    return { payload: sum('payload'), metadata: sum('metadata'), padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const parts = await Promise.all(this.states.map((state) => state.snapshot()));
    const arrays = parts.flatMap((part, i) => Object.entries(part.arrays).map(([name, bytes]) => [`${i}.${name}`, bytes]));
    const manifest: Record<string, string | number> = { kind: this.kind, layers: parts.length };
    parts.forEach((part, i) => {
      for (const [name, value] of Object.entries(part.manifest)) manifest[`${i}.${name}`] = value as string | number;
    });
    return { manifest, arrays: Object.fromEntries(arrays) };
  }

  restore({ manifest, arrays }: Snapshot): void {
    if (manifest['kind'] !== this.kind || manifest['layers'] !== this.states.length)
      throw new HeedError(
        'INVALID_FILE',
        `${this.kind}: a snapshot of ${String(manifest['kind'])} with ${String(manifest['layers'])} layers was given; this stream has ${this.states.length} layers of ${this.kind}`,
      );
    const part = <T>(from: Readonly<Record<string, T>>, i: number): Record<string, T> =>
      Object.fromEntries(
        Object.entries(from).flatMap(([name, value]) => (name.startsWith(`${i}.`) ? [[name.slice(`${i}.`.length), value]] : [])),
      );
    this.states.forEach((state, i) => state.restore({ manifest: part(manifest, i), arrays: part(arrays, i) }));
  }

  truncate(tokens: number): void {
    for (const state of this.states) state.truncate(tokens);
  }

  select(batch: Tensor): void {
    for (const state of this.states) state.select(batch);
  }

  dispose(): void {
    for (const state of this.states) state.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
