import { type Bytes, type Device, type DType, HeedError, indexSelect, type Snapshot, type State, type Tensor, tensor } from '@heed/core';
import { holdsTensors } from '@heed/core/~internal';

/**
 * A stream's state that is some tensors [batch, ...] and a count of tokens. Updated in place by the steps of its technique, freed by
 * `dispose()`.
 */
export class HeldTensors implements State {
  /** Tokens seen. */
  protected seen = 0;

  /**
   * Takes over all tensors.
   * @param kind names the state in snapshots
   * @param constants what steps read and nobody changes: no part of a snapshot, not chosen from by `select`
   * @param grows the second axis is tokens seen so far, and may have another length in a snapshot
   */
  constructor(
    readonly device: Device,
    readonly kind: string,
    private held: Readonly<Record<string, Tensor>>,
    private readonly constants: readonly Tensor[] = [],
    private readonly grows = false,
  ) {
    for (const x of this.all()) x.keep();
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => this.all() });
  }

  /** A tensor of the state by its name; owned by the stream, replaced by later steps. */
  get(name: string): Tensor {
    const x = this.held[name];
    if (!x)
      throw new HeedError('INVALID_ARGUMENT', `${this.kind}: the state has no "${name}"; it has ${Object.keys(this.held).join(', ')}`);
    return x;
  }

  get tokens(): number {
    return this.seen;
  }

  bytes(): Bytes {
    const sum = (list: readonly Tensor[]): number => list.reduce((total, x) => total + x.bytes, 0);
    return { payload: sum(Object.values(this.held)), metadata: sum(this.constants), padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { kind, tokens } = this;
    const manifest: Record<string, string | number | readonly number[]> = { kind, tokens };
    const arrays: Record<string, Uint8Array> = {};
    for (const [name, x] of Object.entries(this.held)) {
      manifest[`${name}.shape`] = [...x.shape];
      manifest[`${name}.dtype`] = x.dtype;
      const values = Float32Array.from(await x.read());
      arrays[name] = new Uint8Array(values.buffer);
    }
    return { manifest, arrays };
  }

  restore({ manifest, arrays }: Snapshot): void {
    const names = Object.keys(this.held);
    const described = (name: string): { shape: number[]; dtype: DType } => ({
      shape: [...((manifest[`${name}.shape`] as readonly number[] | undefined) ?? [])],
      dtype: manifest[`${name}.dtype`] as DType,
    });
    const fits =
      manifest['kind'] === this.kind &&
      typeof manifest['tokens'] === 'number' &&
      names.every((name) => {
        const { shape, dtype } = described(name);
        const own = this.get(name);
        return (
          dtype === own.dtype &&
          shape.length === own.rank &&
          shape.every((n, axis) => n === own.dim(axis) || (this.grows && axis === 1)) &&
          arrays[name]?.byteLength === 4 * shape.reduce((product, n) => product * n, 1)
        );
      });
    if (!fits)
      throw new HeedError(
        'INVALID_FILE',
        `${this.kind}: a snapshot of ${String(manifest['kind'])} was given that does not fit; this stream takes ${this.kind} with ${names.map((name) => `${name} [${this.get(name).shape.join(', ')}]`).join(', ')}`,
      );
    this.replace(
      Object.fromEntries(
        names.map((name) => {
          const { shape, dtype } = described(name);
          // a copy: the bytes may lie at any offset of a file
          return [name, tensor(this.device, new Float32Array((arrays[name] as Uint8Array).slice().buffer), shape, { dtype })];
        }),
      ),
    );
    this.seen = manifest['tokens'] as number;
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
    this.replace(Object.fromEntries(Object.entries(this.held).map(([name, x]) => [name, indexSelect(x, batch)])));
  }

  dispose(): void {
    for (const x of this.all()) x.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Notes what a step did: tensors that take the place of the ones of these names. */
  advance(tokens: number, replaced: Readonly<Record<string, Tensor>> = {}): void {
    this.replace(replaced);
    this.seen += tokens;
  }

  private all(): Tensor[] {
    return [...Object.values(this.held), ...this.constants];
  }

  private replace(replaced: Readonly<Record<string, Tensor>>): void {
    for (const [name, x] of Object.entries(replaced)) {
      x.keep();
      this.held[name]?.dispose();
    }
    this.held = { ...this.held, ...replaced };
  }
}
