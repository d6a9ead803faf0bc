/** Element types of tensors. f16 is a storage type everywhere; arithmetic on it needs shader-f16. */
const dtypes = ['f32', 'f16', 'i32', 'u32', 'u8'] as const;
export type DType = (typeof dtypes)[number];
export type FloatDType = 'f32' | 'f16';

/** What `Tensor.read` gives: f32 and f16 as Float32Array, the integers as themselves. */
export type NumericArray = Float32Array | Int32Array | Uint32Array | Uint8Array;

const bytes: Record<DType, number> = { f32: 4, f16: 2, i32: 4, u32: 4, u8: 1 };

/** Bytes an element. */
export function dtypeBytes(dtype: DType): number {
  return bytes[dtype];
}

export function isFloat(dtype: DType): dtype is FloatDType {
  return dtype === 'f32' || dtype === 'f16';
}
