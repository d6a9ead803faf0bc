import type { WgslModule } from '../../kernel/modules.js';

// Sums of floats whose order does not matter: 96-bit integers in units of 2^-56, positive and negative ones apart, three words
// each. WGSL has no atomic addition of floats; integers add up to the same in every order, so scattered gradients are
// deterministic. Range 2^39; resolution 1.4e-17.

/** Words an accumulator. */
export const accumulatorWords = 6;
const unitExponent = 56;

/** `addFixed(index, value)` on `sums: array<atomic<u32>>`, at accumulator `index`; values beyond 2^38 in size are cut there. */
export const fixedPointAdd: WgslModule = {
  name: 'attention-fixed-point-add',
  text: `
    fn addFixed(index: u32, value: f32) {
      let bits = bitcast<u32>(value);
      let exponent = i32((bits >> 23u) & 0xffu);
      // value = mantissa 2^(exponent - 150); the sum counts in 2^-${unitExponent}
      var mantissa = (bits & 0x7fffffu) | 0x800000u;
      var shift = exponent - ${150 - unitExponent};
      if (shift > 70) { shift = 70; mantissa = 0xffffffu; }
      if (shift < -24 || exponent == 0) { return; }
      let at = base_sums() + index * ${accumulatorWords}u + select(0u, 3u, value < 0.0);
      if (shift < 0) { addWords(at, (mantissa + (1u << u32(-shift - 1))) >> u32(-shift), 0u, 0u); return; }
      let low = u32(shift) & 31u;
      let first = mantissa << low;
      let second = select(0u, mantissa >> (32u - low), low > 8u);
      if (shift < 32) { addWords(at, first, second, 0u); } else if (shift < 64) { addWords(at, 0u, first, second); } else { addWords(at, 0u, 0u, first); }
    }
    fn addWords(at: u32, low: u32, middle: u32, high: u32) {
      var carry = 0u;
      if (low != 0u) { let old = atomicAdd(&sums[at], low); carry = u32(old + low < old); }
      var top = high;
      if (middle != 0u) { let old = atomicAdd(&sums[at + 1u], middle); top += u32(old + middle < old); }
      if (carry != 0u) { let old = atomicAdd(&sums[at + 1u], 1u); top += u32(old == 0xffffffffu); }
      if (top != 0u) { atomicAdd(&sums[at + 2u], top); }
    }`,
};

/** `fixedValue(at)`: the float of an accumulator whose words lie at `sums[at]` and on. */
export const fixedPointValue: WgslModule = {
  name: 'attention-fixed-point-value',
  text: `
    fn fixedValue(at: u32) -> f32 {
      var a = vec3u(sums[at], sums[at + 1u], sums[at + 2u]);
      var b = vec3u(sums[at + 3u], sums[at + 4u], sums[at + 5u]);
      let negative = b.z > a.z || (b.z == a.z && (b.y > a.y || (b.y == a.y && b.x > a.x)));
      if (negative) { let c = a; a = b; b = c; }
      let low = a.x - b.x;
      let borrowLow = u32(a.x < b.x);
      let middle = a.y - b.y - borrowLow;
      let borrowMiddle = u32(a.y < b.y || (a.y == b.y && borrowLow == 1u));
      let high = a.z - b.z - borrowMiddle;
      let value = f32(high) * ${2 ** (64 - unitExponent)}.0 + f32(middle) * ${2 ** (32 - unitExponent)} + f32(low) * ${2 ** -unitExponent};
      return select(value, -value, negative);
    }`,
};
