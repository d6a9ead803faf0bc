import { range, wgslFloat } from '@heed/core/~internal';
import type { FeatureMap } from '../scan/features/map.js';
import { symmetricFeatures } from './layout.js';

/**
 * The symmetric map in the compressed order 1, x_i, x_i x_j for i <= j, as text. Keys enter as they are, up to a power of two a segment that
 * keeps squares within f16; the factor on q.k is on the queries' side, [1, y_i, y_i y_j, y_i^2 / 2] with y = scale q.
 * @param unrolled products of named coordinates, for GPUs: indexed arrays fall out of registers; loops for software compilers
 */
export function taylorMap(dim: number, unrolled: boolean): FeatureMap {
  const count = symmetricFeatures(dim);
  // squares of what is below 2^7 stay in range
  const down = (peak: string): string => `downTo(${peak}, 7)`;
  const kind = (n: string, constant: string, linear: string, product: string): string =>
    `select(select(${product}, ${linear}, ${n} <= ${dim}u), ${constant}, ${n} == 0u)`;
  const fours = range(2 * Math.ceil(dim / 8));
  return {
    dim,
    count,
    epsilonPerKey: false,
    functions: `
      // coordinates of a product
      fn factorsOf(n: u32) -> vec2u {
        var i = 0u;
        var rest = n - ${dim + 1}u;
        while (rest >= ${dim}u - i) { rest -= ${dim}u - i; i++; }
        return vec2u(i, i + rest);
      }`,
    keyRow: () => coordinates(dim, down('peak'), unrolled),
    queryRow: () => `
      ${coordinates(dim, 'uniforms.scale', unrolled)}
      let top4 = ${fours.map((i) => `abs(${unrolled ? `x${i}` : `x[${i}]`})`).reduce((a, b) => `max(${a}, ${b})`)};
      let top = max(max(top4.x, top4.y), max(top4.z, top4.w));
      let most = max(1.0, top * max(1.0, top));`,
    features: (of, n) => (unrolled ? named(dim, count, of, n) : indexed(dim, count, of, n)),
    keyBound: (peak) => `max(1.0, ${peak} * max(1.0, ${peak}))`,
    unscaled: (n, peak) => `(${kind(n, '1.0', `1.0 / ${down(peak)}`, `1.0 / (${down(peak)} * ${down(peak)})`)})`,
    stateFactor: (n) =>
      `(${kind(n, '1.0', 'sqrt(uniforms.scale)', `uniforms.scale * select(1.0, ${wgslFloat(Math.SQRT1_2)}, factorsOf(max(${n}, ${dim + 1}u)).x == factorsOf(max(${n}, ${dim + 1}u)).y)`)})`,
    mostDown: () => '256.0',
    weight: (scores) => `fma(0.5 * (${scores} * uniforms.scale) + vec4f(1.0), ${scores} * uniforms.scale, vec4f(1.0))`,
    weightBound: (peak) => `(1.0 + top * ${dim}.0 * ${peak} * (1.0 + 0.5 * top * ${dim}.0 * ${peak}))`,
  };
}

function coordinates(dim: number, factor: string, unrolled: boolean): string {
  const fours = range(2 * Math.ceil(dim / 8));
  const four = (i: number): string => `vec4f(bitcast<vec4<f16>>(row${i >> 1}.${i & 1 ? 'zw' : 'xy'})) * ${factor}`;
  if (unrolled) return fours.map((i) => `let x${i} = ${four(i)};`).join('\n');
  return `var x: array<vec4f, ${fours.length}>; ${fours.map((i) => `x[${i}] = ${four(i)};`).join(' ')}`;
}

function named(dim: number, count: number, of: 'q' | 'k', n: string): string {
  const pairs = range(dim).flatMap((i) => range(dim - i).map((d) => [i, i + d] as const));
  const x = (i: number): string => `x${i >> 2}.${'xyzw'[i & 3]}`;
  const feature = (at: number): string => {
    if (at >= count) return '0.0';
    if (at === 0) return '1.0';
    if (at <= dim) return x(at - 1);
    const [i, j] = pairs[at - dim - 1] as readonly [number, number];
    return of === 'q' && i === j ? `0.5 * ${x(i)} * ${x(j)}` : `${x(i)} * ${x(j)}`;
  };
  const four = (at: number): string =>
    `fourOf(vec4f(${range(4)
      .map((e) => feature(at + e))
      .join(', ')})${of === 'q' ? ' * factor' : ''})`;
  const chunk = (c: number): string =>
    `low = vec4u(${four(16 * c)}, ${four(16 * c + 4)}); high = vec4u(${four(16 * c + 8)}, ${four(16 * c + 12)});`;
  return `switch ${n} { ${range(Math.ceil(count / 16))
    .map((c) => `case ${c}u: { ${chunk(c)} }`)
    .join('\n')} default: { low = vec4u(); high = vec4u(); } }`;
}

function indexed(dim: number, count: number, of: 'q' | 'k', n: string): string {
  return `{
      var made: array<vec4f, 4>;
      for (var e = 0u; e < min(16u, 15u + groups.x); e++) {
        let at = ${n} * 16u + e;
        var value = select(0.0, 1.0, at == 0u);
        if (at > 0u && at <= ${dim}u) { value = x[(at - 1u) / 4u][(at - 1u) % 4u]; }
        if (at > ${dim}u && at < ${count}u) {
          let pair = factorsOf(at);
          value = x[pair.x / 4u][pair.x % 4u] * x[pair.y / 4u][pair.y % 4u]${of === 'q' ? ' * select(1.0, 0.5, pair.x == pair.y)' : ''};
        }
        made[e / 4u][e % 4u] = value${of === 'q' ? ' * factor' : ''};
      }
      low = vec4u(fourOf(made[0]), fourOf(made[1]));
      high = vec4u(fourOf(made[2]), fourOf(made[3]));
    }`;
}
