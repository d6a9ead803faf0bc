/** Four 32-bit words, each in 0 .. 2^32 - 1. */
export type Uint32x4 = readonly [number, number, number, number];
/** A Philox key: (seedLow, seedHigh xor streamId). */
export type PhiloxKey = readonly [number, number];

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const KEY_STEP_0 = 0x9e3779b9;
const KEY_STEP_1 = 0xbb67ae85;
const ROUNDS = 10;

/** The high 32 bits of a x b, from products of 16-bit halves (each is exact in a double). */
export function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const low = aLow * bLow;
  const middle = aHigh * bLow + (low >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (cross >>> 16)) >>> 0;
}

/**
 * Philox4x32-10, the counter-based generator of Salmon et al. 2011 (section 3.3): a keyed bijection of 128-bit counters.
 * Bit-equal to `philox4x32` of {@link philoxWgsl}.
 * @param counter four words; Heed counts (element / 4 low, element / 4 high, step, op)
 * @param key two words; Heed's key is (seedLow, seedHigh xor streamId)
 * @returns four random words
 */
export function philox4x32(counter: Uint32x4, key: PhiloxKey): Uint32x4 {
  const words = new Uint32Array(4);
  philoxInto(words, counter[0], counter[1], counter[2], counter[3], key);
  return [words[0] as number, words[1] as number, words[2] as number, words[3] as number];
}

/** As `philox4x32`, into `out`: for draws of millions of numbers, without an array a block. */
export function philoxInto(out: Uint32Array, c0: number, c1: number, c2: number, c3: number, key: PhiloxKey): void {
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = mulHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0);
    const high1 = mulHigh(MULTIPLIER_1, c2);
    const low1 = Math.imul(MULTIPLIER_1, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + KEY_STEP_0) | 0;
    k1 = (k1 + KEY_STEP_1) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** A word as a uniform number in [0, 1): its 24 high bits, exact in f32 and equal to the WGSL form. */
export function uniformOf(word: number): number {
  return (word >>> 8) * 2 ** -24;
}

/**
 * Two words as two independent standard normal numbers (Box-Muller; the radius takes a uniform in (0, 1]).
 * Computed in float64 and rounded to f32; the WGSL form differs by the device's log, sqrt, sin and cos.
 */
export function normalPairInto(out: Float32Array, at: number, first: number, second: number): void {
  const radius = Math.sqrt(-2 * Math.log(((first >>> 8) + 1) * 2 ** -24));
  const angle = 2 * Math.PI * uniformOf(second);
  out[at] = radius * Math.cos(angle);
  if (at + 1 < out.length) out[at + 1] = radius * Math.sin(angle);
}

/**
 * The same generator as WGSL text, without a binding:
 * - `philox4x32(counter, key)`: the four words;
 * - `philoxUniform4(words)`: numbers in [0, 1);
 * - `philoxNormal4(words)`: standard normal numbers, elements 4n .. 4n + 3 of the host form in order.
 */
export const philoxWgsl: string = /* wgsl */ `
fn philoxMulHigh(a: u32, b: u32) -> u32 {
  let aLow = a & 0xffffu;
  let aHigh = a >> 16u;
  let bLow = b & 0xffffu;
  let bHigh = b >> 16u;
  let middle = aHigh * bLow + ((aLow * bLow) >> 16u);
  let cross = aLow * bHigh + (middle & 0xffffu);
  return aHigh * bHigh + (middle >> 16u) + (cross >> 16u);
}

fn philox4x32(counter: vec4u, key: vec2u) -> vec4u {
  var c = counter;
  var k = key;
  for (var round = 0u; round < ${ROUNDS}u; round++) {
    let high0 = philoxMulHigh(${MULTIPLIER_0}u, c.x);
    let high1 = philoxMulHigh(${MULTIPLIER_1}u, c.z);
    c = vec4u(high1 ^ c.y ^ k.x, ${MULTIPLIER_1}u * c.z, high0 ^ c.w ^ k.y, ${MULTIPLIER_0}u * c.x);
    k += vec2u(${KEY_STEP_0}u, ${KEY_STEP_1}u);
  }
  return c;
}

fn philoxUniform4(words: vec4u) -> vec4f {
  return vec4f(words >> vec4u(8u)) * 0x1p-24f;
}

fn philoxNormal4(words: vec4u) -> vec4f {
  let radius = sqrt(-2.0 * log(vec2f((words.xz >> vec2u(8u)) + vec2u(1u)) * 0x1p-24f));
  // cos and sin are only bounded on [-pi, pi]: half a turn less, and both signs turned back.
  let angle = 6.283185307179586 * (vec2f(words.yw >> vec2u(8u)) * 0x1p-24f - 0.5);
  let x = -radius * cos(angle);
  let y = -radius * sin(angle);
  return vec4f(x.x, y.x, x.y, y.y);
}
`;
