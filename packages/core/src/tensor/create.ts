import type { Device } from '../device/device.js';
import { type DType, dtypeBytes } from '../dtype.js';
import { HeedError } from '../errors.js';
import { write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { float32ArrayToHalf } from './half.js';
import { type Shape, sizeOf, Tensor } from './tensor.js';

const maxRank = 6;

/** @throws HeedError SHAPE_MISMATCH unless `shape` has at most 6 axes of non-negative integer lengths */
export function checkShape(who: string, shape: Shape): void {
  if (shape.length > maxRank)
    throw new HeedError('SHAPE_MISMATCH', `${who}: shape [${shape.join(', ')}] has ${shape.length} axes; at most ${maxRank} are supported`);
  for (let axis = 0; axis < shape.length; axis++) {
    const n = shape[axis] as number;
    if (!Number.isInteger(n) || n < 0)
      throw new HeedError('SHAPE_MISMATCH', `${who}: shape [${shape.join(', ')}] has the length ${n}; lengths are integers of 0 or more`);
  }
}

/** A tensor whose elements are not set: for kernels that write all of them. */
export function empty(device: Device, shape: Shape, dtype: DType = 'f32', label?: string): Tensor {
  checkShape('core', shape);
  const storage = device.allocate(sizeOf(shape) * dtypeBytes(dtype), label ?? { shape, dtype });
  return new Tensor(device, storage, dtype, shape, undefined, 0, label);
}

type TensorValues = Float32Array | Float64Array | Int32Array | Uint32Array | Uint8Array | Uint16Array | readonly number[];

/**
 * A tensor from values in row-major order.
 * @param values one number an element; a Float32Array gives f32, Int32Array i32, Uint32Array u32, Uint8Array u8, arrays of
 *   numbers f32, unless `dtype` says otherwise; numbers are converted (f16 rounds to nearest)
 * @param shape lengths of the axes, at most 6; default one axis
 * @throws HeedError SHAPE_MISMATCH when the number of values is not the product of the shape
 */
export function tensor(
  device: Device,
  values: TensorValues,
  shape: Shape = [values.length],
  options: { dtype?: DType; label?: string } = {},
): Tensor {
  checkShape('tensor', shape);
  if (sizeOf(shape) !== values.length) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `tensor: ${values.length} values were given for shape [${shape.join(', ')}], which has ${sizeOf(shape)} elements`,
    );
  }
  const dtype = options.dtype ?? defaultDType(values);
  const out = empty(device, shape, dtype, options.label);
  writeValues(out, values);
  return out;
}

/**
 * Overwrites a contiguous tensor with values of the host, after everything recorded so far.
 * @throws HeedError SHAPE_MISMATCH when the counts differ or the tensor is a strided view
 */
export function writeValues(target: Tensor, values: TensorValues): void {
  if (values.length !== target.size)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `core: ${values.length} values were given for ${target.describe()}, which has ${target.size} elements`,
    );
  const byteOffset = target.offset * dtypeBytes(target.dtype);
  if (!target.contiguous || byteOffset % 4 !== 0)
    throw new HeedError('SHAPE_MISMATCH', `core: ${target.describe()} is a strided view; write to a contiguous tensor`);
  if (values.length === 0) return;
  target.device.write(target.storage, byteOffset, toBytes(values, target.dtype));
}

function defaultDType(values: TensorValues): DType {
  if (values instanceof Int32Array) return 'i32';
  if (values instanceof Uint32Array) return 'u32';
  if (values instanceof Uint8Array) return 'u8';
  return 'f32';
}

function toBytes(values: TensorValues, dtype: DType): Uint8Array {
  const converted =
    dtype === 'f32'
      ? values instanceof Float32Array
        ? values
        : Float32Array.from(values)
      : dtype === 'i32'
        ? values instanceof Int32Array
          ? values
          : Int32Array.from(values)
        : dtype === 'u32'
          ? values instanceof Uint32Array
            ? values
            : Uint32Array.from(values)
          : dtype === 'u8'
            ? values instanceof Uint8Array
              ? values
              : Uint8Array.from(values)
            : float32ArrayToHalf(values instanceof Float32Array ? values : Float32Array.from(values));
  return new Uint8Array(converted.buffer, converted.byteOffset, converted.byteLength);
}

// Writes one 32-bit pattern over a whole buffer.
// tile    4 words a lane, 256 lanes
// bytes   writes 4 a word
const fillWords = defineKernel({
  name: 'fill',
  bindings: { out: write('any', { raw: 'vec4u' }) },
  uniforms: { pattern: 'u32', items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { out[base_out() + i] = vec4u(uniforms.pattern); }
    }`,
});

/**
 * A tensor with every element `value`.
 * @param shape lengths of the axes, at most 6
 * @param options.dtype default f32
 * @param options.label names the tensor in messages
 * @returns a contiguous tensor
 * @throws HeedError SHAPE_MISMATCH for a shape that is none, LIMIT_EXCEEDED where the device has no buffer so large
 */
export function full(device: Device, shape: Shape, value: number, options: { dtype?: DType; label?: string } = {}): Tensor {
  const dtype = options.dtype ?? 'f32';
  const out = empty(device, shape, dtype, options.label);
  const word = new Uint8Array(4);
  const element = toBytes([value], dtype);
  for (let at = 0; at < 4; at += element.byteLength) word.set(element, at);
  const pattern = new Uint32Array(word.buffer)[0] ?? 0;
  const items = Math.ceil(out.bytes / 16);
  // what is larger than a binding is filled window by window
  const window = Math.floor(device.limits.maxStorageBufferBindingSize / 256) * 16;
  for (let at = 0; at < items; at += window) {
    const count = Math.min(window, items - at);
    const perItem = 16 / dtypeBytes(dtype);
    fillWords.run(device, {
      spec: {},
      tensors: { out: { storage: out.storage, dtype, offset: at * perItem, extent: count * perItem, label: out.label, shape } },
      uniforms: { pattern, items: count },
      grid: [Math.ceil(count / 256)],
    });
  }
  return out;
}

/**
 * A tensor of zeros.
 * @param shape lengths of the axes, at most 6
 * @param options.dtype default f32
 * @param options.label names the tensor in messages
 * @returns a contiguous tensor
 * @throws HeedError SHAPE_MISMATCH for a shape that is none, LIMIT_EXCEEDED where the device has no buffer so large
 */
export function zeros(device: Device, shape: Shape, options: { dtype?: DType; label?: string } = {}): Tensor {
  return full(device, shape, 0, options);
}
