import type { Params } from '../autodiff/grad.js';
import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import type { RandomStream } from '../random/stream.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Carry } from './carry.js';

/** What a mixer may know of its place in a model while it runs. */
export interface MixContext {
  /** Index of the layer, from 0. */
  layer: number;
  layers: number;
  training: boolean;
  /** Randomness of this call; an op that draws numbers throws without it. */
  random?: RandomStream;
  /** Position of each token, u32 [T] or [B, T]; absent: 0 .. T-1 (after what a state holds). */
  positions?: Tensor;
  /** Valid tokens a batch entry, i32 [B]. */
  lengths?: Tensor;
  /** Typed slots that layers of one forward pass hand on. */
  carry: Carry;
}

/** Bytes of a state or cache by kind; their sum is what its buffers take. */
export interface Bytes {
  /** States, keys, values. */
  payload: number;
  /** Counts, page tables, scales of codes. */
  metadata: number;
  /** Room that is not filled yet. */
  padding: number;
  /** In host memory. */
  host: number;
}

/** Sum of the bytes on the device. */
export function deviceBytes(bytes: Bytes): number {
  return bytes.payload + bytes.metadata + bytes.padding;
}

/** A state in host memory with a manifest; restoring it gives bit-identical decoding. */
export interface Snapshot {
  /** Which kind of state, its shapes, dtypes and policy parameters; `restore` refuses another. */
  manifest: Readonly<Record<string, string | number | boolean | readonly number[]>>;
  arrays: Readonly<Record<string, Uint8Array>>;
}

/** What a stream keeps between tokens. Updated in place by `step`. */
export interface State {
  /** Tokens that it has seen. */
  readonly tokens: number;
  /** What its buffers take. */
  bytes(): Bytes;
  /** A copy in host memory, of all that was recorded before. */
  snapshot(): Promise<Snapshot>;
  /**
   * Goes back to a snapshot.
   * @param snapshot of such a state
   * @throws HeedError INVALID_FILE when the manifest is another's
   */
  restore(snapshot: Snapshot): void;
  /** Forgets all but the first `tokens`: exact, or throws HeedError UNSUPPORTED. */
  truncate(tokens: number): void;
  /** Keeps the batch entries of `batch`, u32 [n], in that order (beams, finished sequences). */
  select(batch: Tensor): void;
  /** Frees its buffers; it must not be used any more. */
  dispose(): void;
}

/** A layer without a stream: a block of an image model, a bidirectional mixer. */
export interface Layer<P extends Params = Params> {
  readonly name: string;
  /** Parameters by name, f32. */
  init(device: Device, random: RandomStream): P;
  /** x [B, T, C], or [B, H, W, C], to `out`; `aux` carries losses and statistics (running means, loads) by name. */
  apply(params: P, x: Tensor, context: MixContext): { out: Tensor; aux?: Record<string, Tensor> };
}

/** One layer's way of mixing tokens, so that a model swaps its attention by changing one line. `apply` is the parallel form, x [B, T, C]. */
export interface TokenMixer<P extends Params = Params, S extends State = State> extends Layer<P> {
  /** An empty state for `step`. */
  start(device: Device, options: { batch: number; capacity: number; dtype: DType }): S;
  /** Stream form: x [B, n, C] to [B, n, C]; prefill by pieces, decode with n = 1; the state is updated in place. */
  step(params: P, x: Tensor, state: S, context: MixContext): Tensor;
}
