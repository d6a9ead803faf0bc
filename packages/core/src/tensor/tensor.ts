import type { Device } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import { type DType, dtypeBytes, type NumericArray } from '../dtype.js';
import { HeedError } from '../errors.js';
import type { Operand } from '../kernel/bindings.js';
import { copyOfCore, enterScope, leaveScope, moveToScope, type Scope, tensorBrand } from './scope.js';

export type Shape = readonly number[];

let nextId = 1;
let warnOnLeak = false;

/** In development: print a warning when a tensor was collected without having been disposed. Default off. */
export function warnOnLeakedTensors(on: boolean): void {
  warnOnLeak = on;
}

interface Leaked {
  device: Device;
  storage: Storage;
  shape: Shape;
  dtype: DType;
  label: string | undefined;
}

// Watches tensors that no scope owns: a scope holds its own and disposes them.
const net = new FinalizationRegistry<Leaked>(({ device, storage, ...what }) => {
  device.tensors--;
  device.pool.release(storage);
  if (warnOnLeak) console.warn(`core: tensor ${describe(what)} was never disposed; use scope(), \`using\` or dispose()`);
});

function describe({ shape, dtype, label }: { shape: Shape; dtype: DType; label: string | undefined }): string {
  return `${label ? `"${label}" ` : ''}[${shape.join(', ')}] ${dtype}`;
}

/** How a tensor lies in its buffer. The last axis is contiguous. */
export interface TensorLayout {
  shape: Shape;
  /** Elements from one index to the next, an axis; the last is 1. Undefined: row-major without gaps. */
  strides: Shape | undefined;
  /** Element of the buffer that index 0 lies at. */
  offset: number;
}

/** Row-major strides of a shape. */
export function contiguousStrides(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = step;
    step *= shape[axis] ?? 1;
  }
  return strides;
}

export function sizeOf(shape: Shape): number {
  let size = 1;
  for (let axis = 0; axis < shape.length; axis++) size *= shape[axis] as number;
  return size;
}

/**
 * An array on a device: buffer, dtype, shape and outer strides. Views share the buffer. Freed by `dispose()`, `using`,
 * or the `scope()` it was made in; a finaliser is the net beneath.
 */
export class Tensor implements Operand {
  // the constructor sets all fields: a class whose fields have initialisers runs one more function for each of its objects
  declare readonly id: number;
  declare readonly device: Device;
  declare readonly dtype: DType;
  declare readonly shape: Shape;
  declare readonly offset: number;
  /** Number of elements. */
  declare readonly size: number;
  /** Elements from the first to the last, inclusive: more than `size` in a strided view. */
  declare readonly extent: number;
  /** True when the elements lie in row-major order without gaps. */
  declare readonly contiguous: boolean;
  declare label: string | undefined;
  static {
    Object.defineProperty(Tensor.prototype, tensorBrand, { value: copyOfCore });
  }
  /** The scope that will dispose it, and its neighbours there; kept by scopes. */
  declare owner: Scope | undefined;
  declare before: Tensor | undefined;
  declare behind: Tensor | undefined;
  declare private readonly held: Storage;
  /** Made when somebody asks, where the elements lie without gaps. */
  declare private steps: Shape | undefined;
  declare private gone: boolean;
  declare private watched: boolean;

  /** Takes over one reference to `storage`. For kernels and views; users make tensors by `tensor()`, `zeros()` and ops. */
  constructor(device: Device, storage: Storage, dtype: DType, shape: Shape, strides: Shape | undefined, offset: number, label?: string) {
    let size = 1;
    for (let axis = 0; axis < shape.length; axis++) size *= shape[axis] as number;
    this.id = nextId++;
    this.device = device;
    this.held = storage;
    this.dtype = dtype;
    this.shape = Object.isFrozen(shape) ? shape : Object.freeze([...shape]); // views and results share the lengths of their operands
    this.offset = offset;
    this.size = size;
    this.extent = size;
    this.contiguous = true;
    this.label = label;
    this.owner = this.before = this.behind = undefined;
    this.steps = undefined;
    this.gone = false;
    this.watched = false;
    if (strides !== undefined) {
      this.steps = Object.isFrozen(strides) ? strides : Object.freeze([...strides]);
      if (size > 0) this.extent = 1 + lastElement(shape, strides);
      this.contiguous = isRowMajor(shape, strides);
    }
    device.tensors++;
    if (!enterScope(this)) this.watch();
  }

  /** Elements from one index to the next, an axis. */
  get strides(): Shape {
    return (this.steps ??= Object.freeze(contiguousStrides(this.shape)));
  }

  get rank(): number {
    return this.shape.length;
  }

  /** Bytes of the elements (views count theirs). */
  get bytes(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  get disposed(): boolean {
    return this.gone;
  }

  /** The buffer. @throws HeedError DISPOSED after dispose */
  get storage(): Storage {
    if (this.gone) {
      throw new HeedError(
        'DISPOSED',
        `core: tensor ${this.describe()} was disposed; keep it out of the scope that frees it (return it), or dispose it after its last use`,
      );
    }
    return this.held;
  }

  /** Length of an axis; negative axes count from the end. @throws HeedError SHAPE_MISMATCH when there is no such axis */
  dim(axis: number): number {
    const n = this.shape[axis < 0 ? axis + this.rank : axis];
    if (n === undefined)
      throw new HeedError('SHAPE_MISMATCH', `core: tensor ${this.describe()} has no axis ${axis}; it has ${this.rank} axes`);
    return n;
  }

  /**
   * The elements in row-major order; f16 as Float32Array. Waits for the work recorded so far, and throws what went wrong in it.
   */
  async read(): Promise<NumericArray> {
    const { readTensor } = await import('./read.js');
    return readTensor(this);
  }

  /** A further handle of the same elements, to be disposed by itself. */
  alias(): Tensor {
    return this.another(this.shape, this.steps, this.offset);
  }

  /**
   * A view with another shape, strides or offset; checked by the caller. Strides are kept where the number of axes is, else
   * they are row-major.
   * @param layout what differs from this tensor's
   * @throws HeedError SHAPE_MISMATCH for other axes of a strided view without strides
   */
  view({ shape = this.shape, strides, offset = this.offset }: Partial<TensorLayout>): Tensor {
    if (strides || shape.length === this.rank) return this.another(shape, strides ?? this.strides, offset);
    if (this.contiguous) return this.another(shape, undefined, offset);
    throw new HeedError(
      'SHAPE_MISMATCH',
      `core: tensor ${this.describe()} is a strided view; to see it as [${shape.join(', ')}] give strides, or make it contiguous first`,
    );
  }

  private another(shape: Shape, strides: Shape | undefined, offset: number): Tensor {
    const { storage } = this;
    this.device.pool.retain(storage);
    return new Tensor(this.device, storage, this.dtype, shape, strides, offset, this.label);
  }

  /** Takes the tensor out of its scope; the caller disposes it. */
  keep(): this {
    this.handTo(undefined);
    return this;
  }

  /** Moves the tensor from the scope that owns it to another, or to nobody. */
  handTo(scope: Scope | undefined): void {
    if (this.owner === scope || this.gone) return;
    moveToScope(this, scope);
    if (!scope) this.watch();
  }

  /** Frees the tensor; the buffer goes back to the pool with its last view. A second call does nothing. */
  dispose(): void {
    if (this.gone) return;
    this.gone = true;
    if (this.watched) net.unregister(this);
    if (this.owner) leaveScope(this.owner, this);
    this.device.tensors--;
    this.device.pool.release(this.held);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  describe(): string {
    return describe(this);
  }

  toString(): string {
    return `Tensor ${this.describe()}`;
  }

  private watch(): void {
    if (this.watched) return;
    this.watched = true;
    const { device, held, shape, dtype, label } = this;
    net.register(this, { device, storage: held, shape, dtype, label }, this);
  }
}

/** The place of the last element from the first, in elements. */
function lastElement(shape: Shape, strides: Shape): number {
  let last = 0;
  for (let axis = 0; axis < shape.length; axis++) last += ((shape[axis] as number) - 1) * (strides[axis] ?? 0);
  return last;
}

function isRowMajor(shape: Shape, strides: Shape): boolean {
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const n = shape[axis] as number;
    if (n !== 1 && strides[axis] !== step) return false;
    step *= n;
  }
  return true;
}
