import { range } from '@heed/core/~internal';
import { type RowStrides, rowStrides } from '../strides.js';
import type { HalfLoad } from '../views.js';

// Pieces of WGSL that the kernels of feature maps on fragments share.

/** Strides of their operands. */
export const featureStrides: RowStrides<'q' | 'k' | 'v' | 'out'> = /* @__PURE__ */ rowStrides('q', 'k', 'v', 'out');

/** Their other run-time values; a map adds its own. */
export const featureUniforms = {
  tokens: 'u32',
  heads: 'u32',
  segments: 'u32',
  segmentTokens: 'u32',
  stateSegments: 'u32',
  columnTiles: 'u32',
  rowTiles: 'u32',
  workgroups: 'u32',
  epsilon: 'f32',
} as const;

/** Four floats as halves; the power of two that takes what is at most `value` just below 2^`bits`, or only down to it; the largest of eight. */
export const rangeText = `
      fn fourOf(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(x)); }
      fn downTo(value: f32, bits: i32) -> f32 {
        let excess = clamp(i32(bitcast<u32>(value) >> 23u) - 126 - bits, 0, 120);
        return bitcast<f32>(u32(127 - excess) << 23u);
      }
      fn fitTo(value: f32, bits: i32) -> f32 {
        let excess = clamp(i32(bitcast<u32>(value) >> 23u) - 126 - bits, -40, 120);
        return bitcast<f32>(u32(127 - excess) << 23u);
      }
      fn peakOf(x: vec4u) -> f32 {
        let four = max(abs(bitcast<vec4<f16>>(x.xy)), abs(bitcast<vec4<f16>>(x.zw)));
        let pair = max(four.xy, four.zw);
        return f32(max(pair.x, pair.y));
      }`;

/** `eight_<name>(base, d)`: halves d .. d + 7 of the row at element `base`, zeros from `dim` on. */
export function eightText(name: string, load: HalfLoad, dim: number): string {
  const item = (at: string, size: number): string => `${name}[base_${name}() + (base + ${at}) / ${size}u]`;
  const one = (e: number): string => `select(0.0h, ${item(`min(d + ${e}u, ${dim - 1}u)`, 1)}, d + ${e}u < ${dim}u)`;
  const body: Record<HalfLoad, () => string> = {
    half8: () => `return ${item('d', 8)};`,
    half4: () => `
        let high = bitcast<vec2u>(${item(`min(d + 4u, ${dim - 4}u)`, 4)});
        return vec4u(bitcast<vec2u>(${item('d', 4)}), select(vec2u(), high, d + 4u < ${dim}u));`,
    half: () =>
      `return vec4u(${range(4)
        .map((p) => `bitcast<u32>(vec2<f16>(${one(2 * p)}, ${one(2 * p + 1)}))`)
        .join(', ')});`,
  };
  return `fn eight_${name}(base: u32, d: u32) -> vec4u { if (d >= ${dim}u) { return vec4u(); } ${body[load]()} }`;
}

/** Raw type of the binding of an operand. */
export const halfRaw: Record<HalfLoad, string> = { half8: 'vec4u', half4: 'vec4<f16>', half: 'f16' };

/** Element where the row of a token begins. */
export function rowOf(name: string, token: string): string {
  return `(batch * uniforms.${name}Batch + (${token}) * uniforms.${name}Token + head * uniforms.${name}Head)`;
}

/** `lengthOf(batch)`: valid tokens. */
export function lengthText(bound: boolean): string {
  const valid = 'min(u32(max(load_lengths(batch), 0)), uniforms.tokens)';
  return `fn lengthOf(batch: u32) -> u32 { return ${bound ? valid : 'uniforms.tokens'}; }`;
}

/** The largest of `value` among a workgroup's lanes, through the atomic `slot`; a barrier follows before it is read. */
export function joinText(hardware: boolean, slot: string, value: string): string {
  if (!hardware) return `atomicMax(&${slot}, bitcast<u32>(${value}));`;
  return `{ let most = subgroupMax(bitcast<u32>(${value})); if (subgroupLane == 0u) { atomicMax(&${slot}, most); } }`;
}
