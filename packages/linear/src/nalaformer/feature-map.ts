import { range } from '@heed/core/~internal';
import type { FeatureMap } from '../scan/features/map.js';

/** The run-time values that the map reads. */
export const normAwareSettings = ['lambda', 'tau', 'keyPower', 'angleScale'] as const;

/**
 * The norm-aware map (feature-kernels.ts) as text: 2 dim features, the first half before the second. A query is a row of its own: its
 * norm sets its exponent.
 * @param dim a multiple of 16
 */
export function normAwareMap(form: 'relu' | 'cos'): (dim: number) => FeatureMap {
  const feature = (of: 'q' | 'k', x: string): string => `eightOf(${x}, n, p, second, ${of === 'q' ? 'true' : 'false'}, factor)`;
  return (dim) => {
    const units = range(dim / 8);
    const norm = `
      var square = 0.0;
      var top = 0.0;
      ${units.map((u) => `square += squareOf(row${u}); top = max(top, peakOf(row${u}));`).join('\n')}
      let n = max(sqrt(square), 1e-12);`;
    const keyBound = (peak: string): string => `power(${peak}, uniforms.keyPower)`;
    return {
      dim,
      count: 2 * dim,
      epsilonPerKey: true,
      functions: `
      // u^p for u >= 0; pow(0, p) is not reliable across drivers
      fn power(u: f32, p: f32) -> f32 { return select(0.0, exp2(p * log2(max(u, 1e-37))), u > 0.0); }
      fn powers(u: vec4f, p: f32) -> vec4f {
        if (p == 3.0) { return u * u * u; }
        return select(vec4f(), exp2(p * log2(max(u, vec4f(1e-37)))), u > vec4f());
      }
      fn squareOf(x: vec4u) -> f32 {
        let a = vec4f(bitcast<vec4<f16>>(x.xy));
        let b = vec4f(bitcast<vec4<f16>>(x.zw));
        return dot(a, a) + dot(b, b);
      }
      fn fourFeatures(x: vec4f, n: f32, p: f32, second: bool, query: bool) -> vec4f {
        let u = select(x, x / n, query);
        ${
          form === 'relu'
            ? 'return powers(max(select(u, -u, second), vec4f()), p);'
            : `let angle = uniforms.angleScale * x / n;
        return powers(abs(u), p) * select(cos(angle), sin(angle), second);`
        }
      }
      fn eightOf(x: vec4u, n: f32, p: f32, second: bool, query: bool, factor: f32) -> vec4u {
        return vec4u(
          fourOf(fourFeatures(vec4f(bitcast<vec4<f16>>(x.xy)), n, p, second, query) * factor),
          fourOf(fourFeatures(vec4f(bitcast<vec4<f16>>(x.zw)), n, p, second, query) * factor));
      }`,
      keyRow: () => `${form === 'cos' ? norm : 'let n = 1.0;'} let p = uniforms.keyPower; let factor = fitTo(${keyBound('peak')}, 15);`,
      queryRow: () => `
      ${norm}
      let p = uniforms.lambda * (uniforms.tau + tanh(min(n, 20.0)));
      let most = power(top / n, p);`,
      ...(form === 'relu' && { keyUnit: (n: string) => `(${n} % ${dim / 16}u * 2u)` }),
      features: (of, n, units) => `{
        let second = (${n}) >= ${dim / 16}u;
        ${
          units
            ? `low = ${feature(of, units[0])}; high = ${feature(of, units[1])};`
            : `
        switch (${n}) % ${dim / 16}u {
          ${range(dim / 16)
            .map((c) => `case ${c}u: { low = ${feature(of, `row${2 * c}`)}; high = ${feature(of, `row${2 * c + 1}`)}; }`)
            .join('\n')}
          default: {}
        }`
        }
      }`,
      keyBound,
      unscaled: (_n, peak) => `(1.0 / fitTo(${keyBound(peak)}, 15))`,
      stateFactor: () => '1.0',
      // queries' features are below 2^8, so that their weights are below 2^15
      mostDown: (peak) => `min(256.0, fitTo(${2 * dim}.0 * ${keyBound(peak)}, 7))`,
    };
  };
}
