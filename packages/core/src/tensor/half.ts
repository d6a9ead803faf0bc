// Half precision on the host: IEEE binary16 (f16) and bfloat16 (the upper 16 bits of an f32).
// Rounding is to nearest, ties to even; a NaN stays a NaN (quiet), infinities and signed zeros stay.

const bits = new Uint32Array(1);
const number = new Float32Array(bits.buffer);

/** The f16 bit pattern nearest to x; x is rounded to f32 first, from 65,520 upwards the result is infinity. */
export function float32ToHalf(x: number): number {
  number[0] = x;
  return halfFromBits(bits[0] as number);
}

/** The number that an f16 bit pattern stands for. */
export function halfToFloat32(half: number): number {
  bits[0] = bitsFromHalf(half);
  return number[0] as number;
}

/** The f16 bit patterns of an f32 array. */
export function float32ArrayToHalf(values: Float32Array): Uint16Array<ArrayBuffer> {
  const source = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = halfFromBits(source[i] as number);
  return out;
}

/** The numbers of an array of f16 bit patterns; the table of all 65,536 makes this a look-up. */
export function halfArrayToFloat32(halves: Uint16Array): Float32Array<ArrayBuffer> {
  const table = (halfTable ??= Uint32Array.from({ length: 65536 }, (_, half) => bitsFromHalf(half)));
  const out = new Uint32Array(halves.length);
  for (let i = 0; i < out.length; i++) out[i] = table[halves[i] as number] as number;
  return new Float32Array(out.buffer);
}

/** The bfloat16 bit patterns nearest to an f32 array. */
export function float32ArrayToBfloat16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const source = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const word = source[i] as number;
    // Rounding a NaN's payload up could carry into infinity.
    out[i] = (word & 0x7fffffff) > 0x7f800000 ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** The numbers of an array of bfloat16 bit patterns, exact. */
export function bfloat16ArrayToFloat32(words: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(words.length);
  for (let i = 0; i < out.length; i++) out[i] = (words[i] as number) << 16;
  return new Float32Array(out.buffer);
}

let halfTable: Uint32Array | undefined;

function halfFromBits(word: number): number {
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  // 65,520 lies halfway between the largest half and the next power of two: it and all above round to infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  // 2^-14, the smallest normal half: rebias the exponent by 112 and round off 13 bits; a carry raises the exponent.
  if (magnitude >= 0x38800000) return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  // Up to 2^-25 (the tie goes to even) nothing is left.
  if (magnitude <= 0x33000000) return sign;
  const shift = 126 - (magnitude >>> 23);
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const half = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  const tie = 1 << (shift - 1);
  return sign | (half + (rest > tie || (rest === tie && (half & 1) === 1) ? 1 : 0));
}

function bitsFromHalf(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >>> 10) & 31;
  const mantissa = half & 0x3ff;
  if (exponent === 31) return (sign | 0x7f800000 | (mantissa << 13)) >>> 0;
  if (exponent > 0) return (sign | ((exponent + 112) << 23) | (mantissa << 13)) >>> 0;
  if (mantissa === 0) return sign >>> 0;
  // A subnormal half is mantissa x 2^-24, and normal in f32.
  const top = 31 - Math.clz32(mantissa);
  return (sign | ((top + 103) << 23) | ((mantissa << (23 - top)) & 0x7fffff)) >>> 0;
}
