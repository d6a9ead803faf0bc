import type { WgslModule } from '@heed/core/~internal';

/** gamma^2 of a head; the distance of two points in one fixed order of operations, so that every form selects the same tokens. */
export const cauchyModule: WgslModule = {
  name: 'zeta-cauchy',
  text: `
  fn gammaOf(theta: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(theta, -30.0, 30.0))); }
  fn gammaSquared(theta: f32) -> f32 { let g = gammaOf(theta); return max(g * g, 1e-6); }
  fn squaredDistance(a: vec4f, b: vec4f) -> f32 {
    let d = a - b;
    return fma(d.w, d.w, fma(d.z, d.z, fma(d.y, d.y, d.x * d.x)));
  }`,
};
