import { read, readWrite } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import type { Tensor } from '../tensor/tensor.js';

// What one step tells the next, on the device: no read-back decides anything.
//   0 factor on the gradients (clipping over loss scale)   1 one when the step is skipped
//   2 loss scale   3 clean steps since it changed   4 norm of the gradients, unscaled   5 steps skipped so far
export const controlLength = 8;
const workgroupElements = 4096;

/** Workgroups, and so partial sums, of one gradient. */
export function partialCount(size: number): number {
  return Math.ceil(size / workgroupElements);
}

const reduceTree = `
  for (var half = 128u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (lane < half) { sums[lane] += sums[lane + half]; flags[lane] = max(flags[lane], flags[lane + half]); }
  }
  workgroupBarrier();`;

// Sum of squares of one gradient, and whether any of it is not finite (by bit pattern: WGSL may assume that all are).
// tile    4,096 elements a workgroup, 4 (or 1) a load; no load waits for a branch
// bytes   reads the gradient once
// limits  any size: workgroups fold
const squareSums = defineKernel({
  name: 'gradient-square-sums',
  bindings: { x: read<SquareSpec>('float', { width: (spec) => spec.width }), partials: readWrite('f32') },
  uniforms: { items: 'u32', slot: 'u32' },
  wgsl: ({ width }: SquareSpec) => {
    const [value, word, truth] = width === 4 ? ['vec4f', 'vec4u', 'vec4<bool>'] : ['f32', 'u32', 'bool'];
    const items = workgroupElements / width;
    return `
    var<workgroup> sums: array<f32, 256>;
    var<workgroup> flags: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let part = workgroupIndex(group, groups);
      var sum = ${value}();
      var bad = ${truth}();
      let first = part * ${items}u;
      if (first >= uniforms.items) { return; }
      for (var i = first + lane; i < min(uniforms.items, first + ${items}u); i += 256u) {
        let g = load_x(i);
        let infinite = (bitcast<${word}>(g) & ${word}(0x7f800000u)) == ${word}(0x7f800000u);
        sum += select(g * g, ${value}(), infinite);
        bad = bad | infinite;
      }
      sums[lane] = ${width === 4 ? 'sum.x + sum.y + sum.z + sum.w' : 'sum'};
      flags[lane] = select(0.0, 1.0, ${width === 4 ? 'any(bad)' : 'bad'});
      ${reduceTree}
      if (lane == 0u) {
        store_partials(2u * (uniforms.slot + part), sums[0]);
        store_partials(2u * (uniforms.slot + part) + 1u, flags[0]);
      }
    }`;
  },
});

interface SquareSpec {
  [name: string]: number;
  width: 1 | 4;
}

export function gradientSquareSums(gradient: Tensor, partials: Tensor, slot: number): void {
  const width = gradient.size % 4 === 0 && gradient.offset % 4 === 0 ? 4 : 1;
  squareSums.run(gradient.device, {
    spec: { width },
    tensors: { x: gradient, partials },
    uniforms: { items: gradient.size / width, slot },
    grid: [partialCount(gradient.size)],
  });
}

// The control values of this step from the partial sums: norm, clipping factor, skip, next loss scale.
// tile    all partial sums x 256 lanes, one workgroup
// bytes   reads 8 a partial sum and 8, writes 16 (12 and 24 where the loss scale adapts)
// source  Pascanu, Mikolov, Bengio 2013 (clipping by norm); Micikevicius et al. 2018, section 3.2 (loss scale)
const controls = defineKernel({
  name: 'optimizer-control',
  bindings: { partials: read('f32'), control: readWrite('f32') },
  uniforms: { count: 'u32', clip: 'f32', dynamic: 'u32', growEvery: 'f32', largest: 'f32' },
  wgsl: () => `
    var<workgroup> sums: array<f32, 256>;
    var<workgroup> flags: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(local_invocation_index) lane: u32) {
      var sum = 0.0;
      var flag = 0.0;
      for (var i = lane; i < uniforms.count; i += 256u) {
        sum += load_partials(2u * i);
        flag = max(flag, load_partials(2u * i + 1u));
      }
      sums[lane] = sum;
      flags[lane] = flag;
      ${reduceTree}
      if (lane != 0u) { return; }
      let scale = load_control(2u);
      let norm = sqrt(sums[0]) / scale;
      // a sum of squares that overflowed is as bad as an element that did
      let skip = max(flags[0], select(0.0, 1.0, (bitcast<u32>(sums[0]) & 0x7f800000u) == 0x7f800000u));
      var factor = 1.0 / scale;
      if (uniforms.clip > 0.0) { factor *= min(1.0, uniforms.clip / (norm + 1e-6)); }
      store_control(0u, select(factor, 0.0, skip > 0.0));
      store_control(1u, skip);
      store_control(4u, norm);
      store_control(5u, load_control(5u) + skip);
      if (uniforms.dynamic == 1u) {
        let clean = select(load_control(3u) + 1.0, 0.0, skip > 0.0);
        let grow = clean >= uniforms.growEvery;
        store_control(3u, select(clean, 0.0, grow));
        store_control(2u, clamp(scale * select(select(1.0, 2.0, grow), 0.5, skip > 0.0), 1.0, uniforms.largest));
      }
    }`,
});

export function optimizerControl(
  partials: Tensor,
  control: Tensor,
  options: { count: number; clip: number; dynamic: boolean; growEvery: number; largest: number },
): void {
  controls.run(control.device, {
    spec: {},
    tensors: { partials, control },
    uniforms: {
      count: options.count,
      clip: options.clip,
      dynamic: options.dynamic ? 1 : 0,
      growEvery: options.growEvery,
      largest: options.largest,
    },
    grid: [1],
  });
}

export type Rule = 'adamw' | 'sgd' | 'lion';

// p, m, v after one step of an optimiser, element by element. The learning rate is negative for ascent.
//   adamw  Loshchilov, Hutter 2019: p *= 1 - |lr| wd; m, v moving averages; p -= lr (m / c1) / (sqrt(v / c2) + eps)
//   sgd    g += wd p; m = mu m + g (first step m = g); p -= lr (m, or g + mu m)
//   lion   Chen et al. 2023: u = sign(b1 m + (1 - b1) g); p -= lr (u + wd p); m = b2 m + (1 - b2) g
// tile    256 elements a workgroup
// bytes   reads g, p, m (v), writes p, m (v): 28 an element for adamw in f32, the floor
const update = defineKernel({
  name: 'optimizer-update',
  bindings: {
    p: readWrite('f32'),
    g: read('float'),
    m: readWrite('f32', { when: (spec: { rule: Rule; momentum: boolean; nesterov: boolean }) => spec.momentum }),
    v: readWrite('f32', { when: (spec) => spec.rule === 'adamw' }),
    control: read('f32'),
  },
  uniforms: {
    size: 'u32',
    learningRate: 'f32',
    weightDecay: 'f32',
    beta1: 'f32',
    beta2: 'f32',
    epsilon: 'f32',
    correction1: 'f32',
    correction2: 'f32',
    first: 'u32',
  },
  wgsl: ({ rule, momentum, nesterov }: { rule: Rule; momentum: boolean; nesterov: boolean }) => {
    const rules: Record<Rule, string> = {
      adamw: `
        let m = uniforms.beta1 * load_m(i) + (1.0 - uniforms.beta1) * g;
        let v = uniforms.beta2 * load_v(i) + (1.0 - uniforms.beta2) * g * g;
        store_m(i, m);
        store_v(i, v);
        p = p * (1.0 - abs(uniforms.learningRate) * uniforms.weightDecay)
          - uniforms.learningRate * (m / uniforms.correction1) / (sqrt(v / uniforms.correction2) + uniforms.epsilon);`,
      sgd: `
        let d = g + uniforms.weightDecay * p * sign(uniforms.learningRate);
        ${
          momentum
            ? `var m = d;
        if (uniforms.first == 0u) { m = uniforms.beta1 * load_m(i) + d; }
        store_m(i, m);
        p -= uniforms.learningRate * ${nesterov ? '(d + uniforms.beta1 * m)' : 'm'};`
            : 'p -= uniforms.learningRate * d;'
        }`,
      lion: `
        let m = load_m(i);
        let u = sign(uniforms.beta1 * m + (1.0 - uniforms.beta1) * g);
        p -= uniforms.learningRate * u + abs(uniforms.learningRate) * uniforms.weightDecay * p;
        store_m(i, uniforms.beta2 * m + (1.0 - uniforms.beta2) * g);`,
    };
    return `
      @compute @workgroup_size(256)
      fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let i = workgroupIndex(group, groups) * 256u + lane;
        if (i >= uniforms.size || load_control(1u) > 0.0) { return; }
        let g = load_g(i) * load_control(0u);
        var p = load_p(i);
        ${rules[rule]}
        store_p(i, p);
      }`;
  },
});

export interface UpdateOptions {
  rule: Rule;
  nesterov: boolean;
  learningRate: number;
  weightDecay: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  correction1: number;
  correction2: number;
  first: boolean;
}

export function optimizerUpdate(
  p: Tensor,
  g: Tensor,
  m: Tensor | undefined,
  v: Tensor | undefined,
  control: Tensor,
  o: UpdateOptions,
): void {
  update.run(p.device, {
    spec: { rule: o.rule, momentum: m !== undefined, nesterov: o.nesterov },
    tensors: { p, g, m, v, control },
    uniforms: {
      size: p.size,
      learningRate: o.learningRate,
      weightDecay: o.weightDecay,
      beta1: o.beta1,
      beta2: o.beta2,
      epsilon: o.epsilon,
      correction1: o.correction1,
      correction2: o.correction2,
      first: o.first ? 1 : 0,
    },
    grid: [Math.ceil(p.size / 256)],
  });
}

// average = decay * average + (1 - decay) * p
// tile    1 element a lane, 256 lanes
// bytes   reads 8, writes 4 an element
const average = defineKernel({
  name: 'moving-average',
  bindings: { average: readWrite('f32'), p: read('f32') },
  uniforms: { size: 'u32', decay: 'f32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_average(i, mix(load_p(i), load_average(i), uniforms.decay)); }
    }`,
});

export function movingAverage(into: Tensor, p: Tensor, decay: number): void {
  average.run(p.device, { spec: {}, tensors: { average: into, p }, uniforms: { size: p.size, decay }, grid: [Math.ceil(p.size / 256)] });
}
