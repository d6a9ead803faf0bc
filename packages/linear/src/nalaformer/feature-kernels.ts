// The norm-aware feature maps: a row of d coordinates becomes 2 d features, the sign
// split |x|^p [x > 0], |x|^p [x < 0] or the pair |x|^p cos th, |x|^p sin th; queries as x / n with p(n) = lambda (tau + tanh n), n their norm.
// tile    `lanes` lanes a row, 256 a workgroup; the rows' sums go through workgroup memory
// bytes   reads d elements a row (rotated: and 8 d of the table), writes 8 d as they are and 8 d rotated
// limits  powers by exp2 and log2 with 0 kept apart; zero vectors give zeros, values and gradients
// source  Meng et al. 2025 (arXiv 2506.21137); ZacharyMeng/NaLaFormer, NALA.py
import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';
import { rowStrides } from '../scan/strides.js';

/** What specialises the kernels. */
interface FeatureSpec {
  [name: string]: string | number | boolean;
  of: 'q' | 'k';
  map: 'relu' | 'cos';
  dim: number;
  lanes: number;
  /** Features as they are, and features rotated by the table. */
  plain: boolean;
  rotated: boolean;
}

/** Which features, of what. */
export interface FeatureSettings {
  of: 'q' | 'k';
  map: 'relu' | 'cos';
  lambda: number;
  tau: number;
  keyPower: number;
  angleScale: number;
}

/** Sines and cosines of positions, f32 [tokens, headDim]. */
export interface RotaryTable {
  sin: Tensor;
  cos: Tensor;
}

const strides = /* @__PURE__ */ rowStrides('x');
const uniforms = {
  ...strides.uniforms,
  tokens: 'u32',
  heads: 'u32',
  rows: 'u32',
  lambda: 'f32',
  tau: 'f32',
  keyPower: 'f32',
  angleScale: 'f32',
} as const;

// u^p for u >= 0; pow(0, p) is not reliable across drivers. tanh is 1 in f32 from 20 on, and overflows on some from 89 on.
const shared = (s: FeatureSpec): string => `
    const least = 1e-12;
    var<workgroup> sums: array<f32, 256>;
    fn power(u: f32, p: f32) -> f32 { return select(0.0, exp2(p * log2(max(u, 1e-37))), u > 0.0); }
    fn rowSum(lane: u32, value: f32) -> f32 {
      sums[lane] = value;
      workgroupBarrier();
      var total = 0.0;
      let first = lane / ${s.lanes}u * ${s.lanes}u;
      for (var i = 0u; i < ${s.lanes}u; i++) { total += sums[first + i]; }
      workgroupBarrier();
      return total;
    }
    // exponent of a row of norm n
    fn exponent(n: f32) -> f32 { return ${s.of === 'q' ? 'uniforms.lambda * (uniforms.tau + tanh(min(n, 20.0)))' : 'uniforms.keyPower'}; }`;

/** The two features of a coordinate. */
const featuresText = (s: FeatureSpec): string => `
    fn features(x: f32, n: f32, p: f32) -> vec2f {
      let w = power(abs(x)${s.of === 'q' ? ' / n' : ''}, p);
      ${
        s.map === 'relu'
          ? 'return select(vec2f(0.0, w), vec2f(w, 0.0), x > 0.0);'
          : 'let angle = uniforms.angleScale * x / n; return w * vec2f(cos(angle), sin(angle));'
      }
    }`;

const start = (s: FeatureSpec): string => `
      let row = workgroupIndex(group, groups) * ${256 / s.lanes}u + lane / ${s.lanes}u;
      let l = lane % ${s.lanes}u;
      let present = row < uniforms.rows;
      let token = row / uniforms.heads % uniforms.tokens;
      let base = row / (uniforms.heads * uniforms.tokens) * uniforms.xBatch + token * uniforms.xToken + row % uniforms.heads * uniforms.xHead;
      ${
        s.of === 'q' || s.map === 'cos'
          ? `
      var square = 0.0;
      if (present) { for (var i = l; i < ${s.dim}u; i += ${s.lanes}u) { let x = load_x(base + i); square += x * x; } }
      let n = max(sqrt(rowSum(lane, square)), least);`
          : 'let n = 1.0;'
      }
      let p = exponent(n);`;

const forwardKernel = defineKernel({
  name: 'nalaformer-features',
  bindings: {
    x: read<FeatureSpec>('float'),
    sines: read<FeatureSpec>('f32', { when: (s) => s.rotated }),
    cosines: read<FeatureSpec>('f32', { when: (s) => s.rotated }),
    phi: write<FeatureSpec>('f32', { when: (s) => s.plain }),
    turned: write<FeatureSpec>('f32', { when: (s) => s.rotated }),
  },
  uniforms,
  wgsl: (s: FeatureSpec) => `
    ${shared(s)}
    ${featuresText(s)}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${start(s)}
      if (!present) { return; }
      for (var i = l; i < ${s.dim}u; i += ${s.lanes}u) {
        let own = features(load_x(base + i), n, p);
        let at = row * ${2 * s.dim}u + i;
        ${s.plain ? `store_phi(at, own.x); store_phi(at + ${s.dim}u, own.y);` : ''}
        ${
          s.rotated
            ? `
        let other = features(load_x(base + (i ^ 1u)), n, p) * select(1.0, -1.0, (i & 1u) == 0u);
        let rotated = own * load_cosines(token * ${s.dim}u + i) + other * load_sines(token * ${s.dim}u + i);
        store_turned(at, rotated.x);
        store_turned(at + ${s.dim}u, rotated.y);`
            : ''
        }
      }
    }`,
});

// What takes cotangents of the features back to the vectors, through the coordinate and through the row's norm.
// tile    as the way there
// bytes   reads d elements and 8 d a set of cotangents a row (rotated: and 8 d of the table), writes d elements
// limits  the same; slopes at 0 are 0
const backwardKernel = defineKernel({
  name: 'nalaformer-features-backward',
  bindings: {
    x: read<FeatureSpec>('float'),
    sines: read<FeatureSpec>('f32', { when: (s) => s.rotated }),
    cosines: read<FeatureSpec>('f32', { when: (s) => s.rotated }),
    dPhi: read<FeatureSpec>('f32', { when: (s) => s.plain }),
    dTurned: read<FeatureSpec>('f32', { when: (s) => s.rotated }),
    dx: write<FeatureSpec>('float'),
  },
  uniforms,
  wgsl: (s: FeatureSpec) => `
    ${shared(s)}
    fn cotangent(row: u32, token: u32, i: u32) -> vec2f {
      let at = row * ${2 * s.dim}u + i;
      var g = vec2f();
      ${s.plain ? `g = vec2f(load_dPhi(at), load_dPhi(at + ${s.dim}u));` : ''}
      ${
        s.rotated
          ? `
      // the transposed turn
      let other = row * ${2 * s.dim}u + (i ^ 1u);
      g += vec2f(load_dTurned(at), load_dTurned(at + ${s.dim}u)) * load_cosines(token * ${s.dim}u + i);
      g += vec2f(load_dTurned(other), load_dTurned(other + ${s.dim}u)) * load_sines(token * ${s.dim}u + (i ^ 1u)) * select(-1.0, 1.0, (i & 1u) == 0u);`
          : ''
      }
      return g;
    }
    // derivatives of the features along their cotangent: by the coordinate, and by the norm
    fn derivatives(x: f32, n: f32, p: f32, g: vec2f) -> vec2f {
      let u = abs(x)${s.of === 'q' ? ' / n' : ''};
      let w = power(u, p);
      let slope = p * power(u, p - 1.0) * sign(x);
      ${s.map === 'relu' ? 'let byPower = select(g.y, g.x, x > 0.0);' : 'let angle = uniforms.angleScale * x / n; let byPower = g.x * cos(angle) + g.y * sin(angle); let byAngle = w * (g.y * cos(angle) - g.x * sin(angle)) * uniforms.angleScale / n;'}
      var made = vec2f(byPower * slope, 0.0);
      ${
        s.of === 'q'
          ? `
      let t = tanh(min(n, 20.0));
      made.x /= n;
      // x^p ln x is 0 at 0
      made.y = byPower * (w * log(max(u, 1e-37)) * uniforms.lambda * (1.0 - t * t) - slope * x / (n * n));`
          : ''
      }
      ${s.map === 'cos' ? 'made += vec2f(byAngle, -byAngle * x / n);' : ''}
      return made;
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${start(s)}
      ${
        s.of === 'q' || s.map === 'cos'
          ? `
      var byNorm = 0.0;
      if (present) { for (var i = l; i < ${s.dim}u; i += ${s.lanes}u) { byNorm += derivatives(load_x(base + i), n, p, cotangent(row, token, i)).y; } }
      let norm = rowSum(lane, byNorm);`
          : 'let norm = 0.0;'
      }
      if (!present) { return; }
      for (var i = l; i < ${s.dim}u; i += ${s.lanes}u) {
        let x = load_x(base + i);
        store_dx(row * ${s.dim}u + i, derivatives(x, n, p, cotangent(row, token, i)).x + norm * x / n);
      }
    }`,
});

function valuesOf(x: Tensor, settings: FeatureSettings): { [K in keyof typeof uniforms]: number } {
  const { lambda, tau, keyPower, angleScale } = settings;
  const rows = x.dim(0) * x.dim(1) * x.dim(2);
  return {
    tokens: x.dim(1),
    heads: x.dim(2),
    rows,
    lambda,
    tau,
    keyPower,
    angleScale,
    ...strides.values({ x }),
  };
}

function specOf(x: Tensor, { of, map }: FeatureSettings, parts: { plain: boolean; rotated: boolean }): FeatureSpec {
  const dim = x.dim(3);
  // a power of two of at most 32: as many as the coordinates
  const lanes = Math.min(32, 2 ** Math.ceil(Math.log2(dim)));
  return { of, map, dim, lanes, ...parts };
}

/**
 * Features of x [batch, tokens, heads, dim], f32 [batch, tokens, heads, 2 dim]: as they are where `plain`, rotated where a table is given.
 */
export function makeFeatures(
  x: Tensor,
  settings: FeatureSettings,
  parts: { plain: boolean; table?: RotaryTable | undefined },
): { phi: Tensor | undefined; turned: Tensor | undefined } {
  const { plain, table } = parts;
  const make = (): Tensor => empty(x.device, [...x.shape.slice(0, 3), 2 * x.dim(3)]);
  const made = { phi: plain ? make() : undefined, turned: table ? make() : undefined };
  if (x.size === 0) return made;
  const spec = specOf(x, settings, { plain, rotated: table !== undefined });
  const values = valuesOf(x, settings);
  forwardKernel.run(x.device, {
    spec,
    tensors: { x, sines: table?.sin, cosines: table?.cos, ...made },
    uniforms: values,
    grid: [Math.ceil((values.rows * spec.lanes) / 256)],
  });
  return made;
}

/** The gradient of x from cotangents of its features, contiguous f32; either may be absent. */
export function pullFeatures(
  x: Tensor,
  settings: FeatureSettings,
  cotangents: { dPhi?: Tensor | undefined; dTurned?: Tensor | undefined },
  table: RotaryTable | undefined,
): Tensor {
  const dx = empty(x.device, x.shape, x.dtype);
  if (x.size === 0) return dx;
  const rotated = cotangents.dTurned !== undefined;
  const spec = specOf(x, settings, { plain: cotangents.dPhi !== undefined, rotated });
  const values = valuesOf(x, settings);
  backwardKernel.run(x.device, {
    spec,
    tensors: { x, sines: rotated ? table?.sin : undefined, cosines: rotated ? table?.cos : undefined, ...cotangents, dx },
    uniforms: values,
    grid: [Math.ceil((values.rows * spec.lanes) / 256)],
  });
  return dx;
}
