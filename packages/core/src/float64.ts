import { HeedError } from './errors.js';

/** A plain float64 array with a shape, row-major: what references compute on. */
export interface F64Array {
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** Elements of a shape. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** An array of this shape from values in row-major order, or of zeros. */
export function f64(shape: readonly number[], values?: ArrayLike<number>): F64Array {
  const count = elements(shape);
  if (values !== undefined && values.length !== count) {
    throw new HeedError('SHAPE_MISMATCH', `testing: ${values.length} values for shape [${shape.join(', ')}]; it holds ${count}`);
  }
  return { shape: [...shape], values: values === undefined ? new Float64Array(count) : Float64Array.from(values) };
}

/** Zeros in the shape of `like`. */
export function f64Like(like: F64Array): F64Array {
  return f64(like.shape);
}

/** The multi-index of a row-major position, for failure texts. */
export function indexOf(shape: readonly number[], position: number): number[] {
  const index: number[] = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const size = shape[axis] as number;
    index.unshift(position % size);
    position = Math.floor(position / size);
  }
  return index;
}

/** What a test draws its inputs from; `RandomStream` is one. */
export interface NormalSource {
  normal(count: number): Float32Array;
}

/** Normal numbers times `deviation` (default 1), rounded to f32 so that a device and a reference get the same inputs. */
export function randomArray(random: NormalSource, shape: readonly number[], deviation = 1): F64Array {
  return f64(
    shape,
    random.normal(elements(shape)).map((x) => x * deviation),
  );
}

/** The values as f32, to make a device tensor of them. */
export function toFloat32(array: F64Array): Float32Array<ArrayBuffer> {
  return Float32Array.from(array.values);
}
