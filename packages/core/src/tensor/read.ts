import { dtypeBytes, type NumericArray } from '../dtype.js';
import { copyContiguous } from './copy.js';
import { halfArrayToFloat32 } from './half.js';
import type { Tensor } from './tensor.js';

/** The elements in row-major order, f16 widened. */
export async function readTensor(x: Tensor): Promise<NumericArray> {
  const source = x.contiguous ? x : copyContiguous(x).keep();
  try {
    const bytes = await x.device.readBytes(source.storage, source.offset * dtypeBytes(x.dtype), x.bytes);
    switch (x.dtype) {
      case 'f32':
        return new Float32Array(bytes.buffer);
      case 'i32':
        return new Int32Array(bytes.buffer);
      case 'u32':
        return new Uint32Array(bytes.buffer);
      case 'u8':
        return bytes;
      default:
        return halfArrayToFloat32(new Uint16Array(bytes.buffer));
    }
  } finally {
    if (source !== x) source.dispose();
  }
}
