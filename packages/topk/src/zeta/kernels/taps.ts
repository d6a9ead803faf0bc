import { HeedError, type Tensor } from '@heed/core';
import { apply, asContiguous, defineKernel, empty, range, read, write } from '@heed/core/~internal';

type TapSpec = { taps: number; vector: boolean };
const sizes = { batch: 'u32', tokens: 'u32', items: 'u32', lead: 'u32' } as const;
const width = ({ vector }: TapSpec): number => (vector ? 4 : 1);
/** Tokens that one lane sums for the gradient of the taps. */
const segment = 64;

// y[t] = sum_i w[i] x[t - i] channel by channel, zeros before the first token; the first `lead` tokens give no output.
// tile    four channels of one token a lane, 256 lanes
// bytes   reads taps x, writes 1 element (the taps of neighbouring tokens come from the cache)
const forwardTaps = defineKernel({
  name: 'zeta-taps',
  bindings: { x: read<TapSpec>('float', { width }), weight: read<TapSpec>('f32', { width }), out: write<TapSpec>('float', { width }) },
  uniforms: sizes,
  wgsl: ({ taps }: TapSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      let kept = uniforms.tokens - uniforms.lead;
      if (i >= uniforms.batch * kept * uniforms.items) { return; }
      let c = i % uniforms.items;
      let t = (i / uniforms.items) % kept + uniforms.lead;
      let at = ((i / uniforms.items / kept) * uniforms.tokens + t) * uniforms.items + c;
      var sum = load_weight(c) * load_x(at);
      ${range(taps - 1)
        .map((n) => `if (t >= ${n + 1}u) { sum += load_weight(${n + 1}u * uniforms.items + c) * load_x(at - ${n + 1}u * uniforms.items); }`)
        .join('\n')}
      store_out(i, sum);
    }`,
});

// dx[t] = sum_i w[i] dy[t + i].
// tile    four channels of one token a lane, 256 lanes
// bytes   reads taps dy (from the cache but for one), writes 1 element
const backwardTaps = defineKernel({
  name: 'zeta-taps-backward',
  bindings: { dOut: read<TapSpec>('float', { width }), weight: read<TapSpec>('f32', { width }), dx: write<TapSpec>('float', { width }) },
  uniforms: sizes,
  wgsl: ({ taps }: TapSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.batch * uniforms.tokens * uniforms.items) { return; }
      let c = i % uniforms.items;
      let t = (i / uniforms.items) % uniforms.tokens;
      var sum = load_weight(c) * load_dOut(i);
      ${range(taps - 1)
        .map(
          (n) =>
            `if (t + ${n + 1}u < uniforms.tokens) { sum += load_weight(${n + 1}u * uniforms.items + c) * load_dOut(i + ${n + 1}u * uniforms.items); }`,
        )
        .join('\n')}
      store_dx(i, sum);
    }`,
});

// Partial sums of dw[i] = sum_t dy[t] x[t - i] over 64 tokens of one batch entry.
// tile    four channels of 64 tokens a lane, 64 lanes; sums of all taps in registers
// bytes   reads dy once and taps x (from the cache but for one), writes 4 taps a channel and segment
const tapPartials = defineKernel({
  name: 'zeta-taps-partials',
  bindings: { x: read<TapSpec>('float', { width }), dOut: read<TapSpec>('float', { width }), partials: write<TapSpec>('f32', { width }) },
  uniforms: { ...sizes, segments: 'u32' },
  wgsl: ({ taps, vector }: TapSpec) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.batch * uniforms.segments * uniforms.items) { return; }
      let c = i % uniforms.items;
      let piece = i / uniforms.items;
      let start = (piece % uniforms.segments) * ${segment}u;
      let base = (piece / uniforms.segments) * uniforms.tokens;
      ${range(taps)
        .map((n) => `var sum${n} = ${vector ? 'vec4f(0.0)' : '0.0'};`)
        .join(' ')}
      for (var t = start; t < min(start + ${segment}u, uniforms.tokens); t++) {
        let at = (base + t) * uniforms.items + c;
        let g = load_dOut(at);
        ${range(taps)
          .map((n) => `if (t >= ${n}u) { sum${n} += g * load_x(at - ${n}u * uniforms.items); }`)
          .join('\n')}
      }
      ${range(taps)
        .map((n) => `store_partials((piece * ${taps}u + ${n}u) * uniforms.items + c, sum${n});`)
        .join('\n')}
    }`,
});

// The partial sums in order: no atomics.
// tile    one weight a lane, 64 lanes
// bytes   reads 4 a segment, batch entry and weight, writes 4 a weight
const sumPartials = defineKernel({
  name: 'zeta-taps-sum',
  bindings: { partials: read('f32'), dWeight: write('f32') },
  uniforms: { size: 'u32', pieces: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.size) { return; }
      var sum = 0.0;
      for (var p = 0u; p < uniforms.pieces; p++) { sum += load_partials(p * uniforms.size + i); }
      store_dWeight(i, sum);
    }`,
});

/**
 * Short causal convolution channel by channel: y[t] = sum_i weight[i] x[t - i].
 * @param x [batch, tokens, channels], f32 or f16
 * @param weight [taps, channels], f32
 * @param lead leading tokens that are only looked back at; they give no output (and then there is no gradient)
 * @returns [batch, tokens - lead, channels], dtype of x
 */
export function causalTaps(x: Tensor, weight: Tensor, lead = 0): Tensor {
  const [batch, tokens, channels] = [x.dim(0), x.dim(1), x.dim(2)];
  const taps = weight.dim(0);
  if (weight.dim(1) !== channels)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `causalTaps: weight is ${weight.describe()}, x has ${channels} channels; give one weight a channel`,
    );
  const vector = channels % 4 === 0;
  const items = vector ? channels / 4 : channels;
  const uniforms = { batch, tokens, items, lead };
  const spec = { taps, vector };
  const { device } = x;
  return apply({
    name: 'causalTaps',
    inputs: [x, weight],
    forward: () => {
      const out = empty(device, [batch, tokens - lead, channels], x.dtype);
      forwardTaps.run(device, {
        spec,
        tensors: { x: asContiguous(x, 4), weight, out },
        uniforms,
        grid: [Math.ceil((batch * (tokens - lead) * items) / 256)],
      });
      return out;
    },
    ...(lead === 0 && {
      saves: () => [x, weight],
      backward: ([given], { saved: [savedX, savedWeight] }) => {
        if (!given || !savedX || !savedWeight) return [null, null];
        const dOut = asContiguous(given, 4);
        const dx = empty(device, x.shape, x.dtype);
        backwardTaps.run(device, {
          spec,
          tensors: { dOut, weight: savedWeight, dx },
          uniforms,
          grid: [Math.ceil((batch * tokens * items) / 256)],
        });
        const segments = Math.ceil(tokens / segment);
        const partials = empty(device, [batch * segments, taps, channels]);
        tapPartials.run(device, {
          spec,
          tensors: { x: asContiguous(savedX, 4), dOut, partials },
          uniforms: { ...uniforms, segments },
          grid: [Math.ceil((batch * segments * items) / 64)],
        });
        const dWeight = empty(device, weight.shape);
        const size = taps * channels;
        sumPartials.run(device, {
          spec: {},
          tensors: { partials, dWeight },
          uniforms: { size, pieces: batch * segments },
          grid: [Math.ceil(size / 64)],
        });
        return [dx, dWeight];
      },
    }),
  });
}
