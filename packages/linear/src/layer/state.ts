import { type Bytes, type Device, HeedError, type Snapshot, type State, type Tensor, writeValues } from '@heed/core';
import { holdsTensors } from '@heed/core/~internal';
import { selectStates } from '../scan/select.js';

/**
 * State of a stream of a linear layer: f32 tensors by name, each [batch, ...], whose size does not depend on the tokens seen.
 * Steps update them in place. Freed by `dispose()`.
 */
export class LayerState implements State {
  readonly device: Device;
  private readonly held: Map<string, Tensor>;
  private seen = 0;

  /**
   * @param kind names the layer in snapshots; all tensors are taken over
   * @param constants what steps read and nobody changes: no part of a snapshot, not chosen from by `select`
   */
  constructor(
    readonly kind: string,
    device: Device,
    tensors: Readonly<Record<string, Tensor>>,
    private readonly constants: readonly Tensor[] = [],
  ) {
    this.device = device;
    for (const x of constants) x.keep();
    this.held = new Map(Object.entries(tensors).map(([name, x]) => [name, x.keep()]));
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => [...this.held.values(), ...this.constants] });
  }

  /** Tokens seen. */
  get tokens(): number {
    return this.seen;
  }

  /** A tensor of the state; owned by the stream. */
  get(name: string): Tensor {
    const x = this.held.get(name);
    if (!x)
      throw new HeedError('INVALID_ARGUMENT', `${this.kind}: this stream has no "${name}"; it has ${[...this.held.keys()].join(', ')}`);
    return x;
  }

  bytes(): Bytes {
    const payload = [...this.held.values()].reduce((sum, x) => sum + x.bytes, 0);
    return { payload, metadata: this.constants.reduce((sum, x) => sum + x.bytes, 0), padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { tokens } = this;
    const entries = [...this.held].map(async ([name, x]): Promise<[string, Uint8Array]> => {
      const values = await x.read();
      return [name, new Uint8Array(values.buffer, values.byteOffset, values.byteLength)];
    });
    return { manifest: { kind: this.kind, shapes: this.shapes(), tokens }, arrays: Object.fromEntries(await Promise.all(entries)) };
  }

  restore(snapshot: Snapshot): void {
    const { kind, shapes, tokens } = snapshot.manifest;
    const fits = [...this.held].every(([name, x]) => snapshot.arrays[name]?.byteLength === x.bytes);
    if (kind !== this.kind || shapes !== this.shapes() || typeof tokens !== 'number' || !fits)
      throw new HeedError(
        'INVALID_FILE',
        `${this.kind}: a snapshot of ${String(kind)} ${String(shapes)} was given; this stream takes ${this.kind} ${this.shapes()}`,
      );
    // a copy: the bytes may lie at any offset of a file
    for (const [name, x] of this.held) writeValues(x, new Float32Array((snapshot.arrays[name] as Uint8Array).slice().buffer));
    this.seen = tokens;
  }

  truncate(tokens: number): void {
    if (tokens === this.seen) return;
    throw new HeedError(
      'UNSUPPORTED',
      `${this.kind}: truncate to ${tokens} of ${this.seen} tokens; a state keeps no tokens to go back to, take a snapshot() there and restore() it`,
    );
  }

  select(batch: Tensor): void {
    if (batch.dtype !== 'u32' || batch.rank !== 1)
      throw new HeedError('SHAPE_MISMATCH', `${this.kind}: select was given ${batch.describe()}; it takes batch indices, u32 [n]`);
    for (const [name, x] of this.held) {
      const chosen = selectStates(x, batch).keep();
      this.held.set(name, chosen);
      x.dispose();
    }
  }

  dispose(): void {
    for (const x of [...this.held.values(), ...this.constants]) x.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Notes that a step took in `tokens` more. */
  advance(tokens: number): void {
    this.seen += tokens;
  }

  private shapes(): string {
    return [...this.held].map(([name, x]) => `${name} [${x.shape.join(', ')}]`).join(', ');
  }
}
