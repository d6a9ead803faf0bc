import {
  concat,
  copyInto,
  type Device,
  type DType,
  HeedError,
  indexSelect,
  type Snapshot,
  type State,
  scope,
  slice,
  type Tensor,
  tensor,
  zeros,
} from '@heed/core';
import { attention, kv, maskFrom, q, type Mask } from '@heed/core/attention';
import { holdsTensors, uniform } from '@heed/core/~internal';

/** What a causal window of one axis keeps between tokens. */
export interface NeighborhoodStateOptions {
  batch: number;
  kvHeads: number;
  headDim: number;
  valueDim?: number;
  window: number;
  /** Default 1. */
  dilation?: number;
  dtype: DType;
}

/** The last (window - 1) x dilation keys and values, in order: all that a further token can see beside itself. */
export class NeighborhoodState implements State {
  tokens = 0;
  private keys: Tensor;
  private values: Tensor;
  private readonly mask: Mask;

  constructor(
    readonly device: Device,
    readonly options: NeighborhoodStateOptions,
  ) {
    const { batch, kvHeads, headDim, valueDim = headDim, dtype, window, dilation = 1 } = options;
    const length = this.capacity;
    this.keys = zeros(device, [batch, length, kvHeads, headDim], { dtype, label: 'neighborhood keys' }).keep();
    this.values = zeros(device, [batch, length, kvHeads, valueDim], { dtype, label: 'neighborhood values' }).keep();
    Object.defineProperty(this, holdsTensors, { value: () => [this.keys, this.values] });
    const back = q.sub(kv);
    const near = back.ge(0).and(back.le(uniform('reach', 'i32')));
    this.mask = maskFrom({
      predicate: dilation > 1 ? near.and(back.mod(uniform('dilation', 'i32')).eq(0)) : near,
      uniforms: { reach: (window - 1) * dilation, ...(dilation > 1 && { dilation }) },
    });
  }

  /** Tokens that are kept. */
  get capacity(): number {
    return (this.options.window - 1) * (this.options.dilation ?? 1);
  }

  /**
   * Attention of further tokens to their neighborhoods, and the state moved past them.
   * @param q [batch, n, heads, headDim]
   * @param k [batch, n, kvHeads, headDim]
   * @param v [batch, n, kvHeads, valueDim]
   */
  attend(q: Tensor, k: Tensor, v: Tensor, options: { scale?: number } = {}): Tensor {
    const kept = Math.min(this.tokens, this.capacity);
    const n = k.dim(1);
    const out = scope(() => {
      const recent = (x: Tensor): Tensor => slice(x, 1, this.capacity - kept, this.capacity);
      const keys = kept > 0 ? concat([recent(this.keys), k], 1) : k;
      const values = kept > 0 ? concat([recent(this.values), v], 1) : v;
      const result = attention(q, keys, values, { ...options, mask: this.mask, queryOffset: kept });
      // the last tokens move to the end of the kept rows; concat made a buffer of its own, so nothing is read while written
      const stay = Math.min(this.capacity, kept + n);
      if (stay > 0) {
        copyInto(slice(this.keys, 1, this.capacity - stay, this.capacity), slice(keys, 1, kept + n - stay, kept + n));
        copyInto(slice(this.values, 1, this.capacity - stay, this.capacity), slice(values, 1, kept + n - stay, kept + n));
      }
      return result;
    });
    this.tokens += n;
    return out;
  }

  bytes(): { payload: number; metadata: number; padding: number; host: number } {
    const payload = this.keys.bytes + this.values.bytes;
    return { payload, metadata: 0, padding: this.keys.storage.bytes + this.values.storage.bytes - payload, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const [keys, values] = [await this.keys.read(), await this.values.read()];
    const bytesOf = (x: ArrayBufferView): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength).slice();
    return {
      manifest: { kind: 'neighborhood', tokens: this.tokens, ...this.identity() },
      arrays: { keys: bytesOf(keys), values: bytesOf(values) },
    };
  }

  restore({ manifest, arrays }: Snapshot): void {
    for (const [name, value] of Object.entries({ kind: 'neighborhood', ...this.identity() })) {
      if (String(manifest[name]) !== String(value)) {
        throw new HeedError(
          'INVALID_FILE',
          `fna: the snapshot has ${name} ${String(manifest[name])}, this state ${String(value)}; restore into a state of the same settings`,
        );
      }
    }
    for (const [name, target] of [
      ['keys', this.keys],
      ['values', this.values],
    ] as const) {
      const bytes = arrays[name];
      if (!bytes || bytes.byteLength !== target.size * 4)
        throw new HeedError(
          'INVALID_FILE',
          `fna: the snapshot's ${name} have ${bytes?.byteLength ?? 0} B, ${target.size * 4} B are needed`,
        );
      const values = tensor(this.device, new Float32Array(bytes.slice().buffer), target.shape, { dtype: target.dtype });
      copyInto(target, values);
      values.dispose();
    }
    this.tokens = Number(manifest['tokens']);
  }

  truncate(tokens: number): void {
    if (tokens === this.tokens) return;
    if (tokens === 0) {
      this.tokens = 0;
      return;
    }
    throw new HeedError(
      'UNSUPPORTED',
      `fna: the state has seen ${this.tokens} tokens and keeps the last ${this.capacity}; going back to ${tokens} needs older ones, so take a snapshot before`,
    );
  }

  select(batch: Tensor): void {
    const [keys, values] = [indexSelect(this.keys, batch).keep(), indexSelect(this.values, batch).keep()];
    this.dispose();
    this.keys = keys;
    this.values = values;
  }

  dispose(): void {
    this.keys.dispose();
    this.values.dispose();
  }

  private identity(): Record<string, string | number> {
    const { kvHeads, headDim, valueDim = headDim, window, dilation = 1, dtype } = this.options;
    return { batch: this.keys.dim(0), kvHeads, headDim, valueDim, window, dilation, dtype };
  }
}
