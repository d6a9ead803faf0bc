import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

const chunkTokens = 64;

/** Factor of the token at a step. Backwards it is the one of the token after: s_t = a_(t+1) s_(t+1) + b_t. */
const factorAt = (reverse: boolean): string =>
  reverse
    ? 'var a = 0.0; if (step > 0u) { a = load_a((row + t + 1u) * uniforms.channels + channel); }'
    : 'let a = load_a((row + t) * uniforms.channels + channel);';

// First-order recurrence in three dispatches, one lane a channel. This one: product of the factors of each chunk, and its state at
// the end from a zero start. `reverse` walks the tokens backwards.
// tile    64 channels x 64 tokens
// bytes   reads 8 a token and channel, writes 8 a chunk and channel
// limits  chunks and batch entries up to 65,535 each
const chunkEnds = defineKernel({
  name: 'recurrence-chunk-ends',
  bindings: { a: read('f32'), b: read('f32'), factors: write('f32'), ends: write('f32') },
  uniforms: { tokens: 'u32', channels: 'u32', chunks: 'u32' },
  wgsl: ({ reverse }: { reverse: boolean }) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let channel = group.x * 64u + lane;
      if (channel >= uniforms.channels) { return; }
      let first = group.y * ${chunkTokens}u;
      let count = min(${chunkTokens}u, uniforms.tokens - first);
      var factor = 1.0;
      var state = 0.0;
      for (var i = 0u; i < count; i++) {
        let step = first + i;
        let t = ${reverse ? 'uniforms.tokens - 1u - step' : 'step'};
        let row = group.z * uniforms.tokens;
        ${factorAt(reverse)}
        factor *= a;
        state = a * state + load_b((row + t) * uniforms.channels + channel);
      }
      let out = (group.z * uniforms.chunks + group.y) * uniforms.channels + channel;
      store_factors(out, factor);
      store_ends(out, state);
    }`,
});

// Second dispatch: the state at the start of each chunk, by a serial walk over chunks.
// tile    64 channels x all chunks
// bytes   reads 8, writes 4 a chunk and channel
const chunkStarts = defineKernel({
  name: 'recurrence-chunk-starts',
  bindings: {
    factors: read('f32'),
    ends: read('f32'),
    initial: read('f32', { when: (spec: { initial: boolean }) => spec.initial }),
    starts: write('f32'),
  },
  uniforms: { channels: 'u32', chunks: 'u32' },
  wgsl: ({ initial }: { initial: boolean }) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let channel = group.x * 64u + lane;
      if (channel >= uniforms.channels) { return; }
      var state = ${initial ? 'load_initial(group.y * uniforms.channels + channel)' : '0.0'};
      for (var c = 0u; c < uniforms.chunks; c++) {
        let at = (group.y * uniforms.chunks + c) * uniforms.channels + channel;
        store_starts(at, state);
        state = load_factors(at) * state + load_ends(at);
      }
    }`,
});

// Third dispatch: each token again, from the start of its chunk.
// tile    64 channels x 64 tokens
// bytes   reads 8, writes 4 a token and channel; reads 4 a chunk and channel
// limits  as the first dispatch
const chunkStates = defineKernel({
  name: 'recurrence-states',
  bindings: { a: read('f32'), b: read('f32'), starts: read('f32'), out: write('f32') },
  uniforms: { tokens: 'u32', channels: 'u32', chunks: 'u32' },
  wgsl: ({ reverse }: { reverse: boolean }) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let channel = group.x * 64u + lane;
      if (channel >= uniforms.channels) { return; }
      let first = group.y * ${chunkTokens}u;
      let count = min(${chunkTokens}u, uniforms.tokens - first);
      let row = group.z * uniforms.tokens;
      var state = load_starts((group.z * uniforms.chunks + group.y) * uniforms.channels + channel);
      for (var i = 0u; i < count; i++) {
        let step = first + i;
        let t = ${reverse ? 'uniforms.tokens - 1u - step' : 'step'};
        ${factorAt(reverse)}
        state = a * state + load_b((row + t) * uniforms.channels + channel);
        store_out((row + t) * uniforms.channels + channel, state);
      }
    }`,
});

// da_t = ds_t * s_(t-1), with s_(-1) the initial state (zeros when there is none).
// tile    1 element a lane, 256 lanes
// bytes   reads 8, writes 4 an element
const factorGradient = defineKernel({
  name: 'recurrence-factor-gradient',
  bindings: {
    dState: read('f32'),
    states: read('f32'),
    initial: read('f32', { when: (spec: { initial: boolean }) => spec.initial }),
    out: write('f32'),
  },
  uniforms: { tokens: 'u32', channels: 'u32', size: 'u32' },
  wgsl: ({ initial }: { initial: boolean }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let t = (i / uniforms.channels) % uniforms.tokens;
      var before = 0.0;
      if (t > 0u) { before = load_states(i - uniforms.channels); }
      ${initial ? 'else { before = load_initial((i / (uniforms.channels * uniforms.tokens)) * uniforms.channels + i % uniforms.channels); }' : ''}
      store_out(i, load_dState(i) * before);
    }`,
});

// dInitial = a_0 ds_0.
// tile    1 channel of an entry a lane, 256 lanes
// bytes   reads 8, writes 4 a channel
const initialGradient = defineKernel({
  name: 'recurrence-initial-gradient',
  bindings: { a: read('f32'), dState: read('f32'), out: write('f32') },
  uniforms: { tokens: 'u32', channels: 'u32', size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let at = (i / uniforms.channels) * uniforms.tokens * uniforms.channels + i % uniforms.channels;
      store_out(i, load_a(at) * load_dState(at));
    }`,
});

function scan(a: Tensor, b: Tensor, initial: Tensor | undefined, reverse: boolean): Tensor {
  const { device } = a;
  const [batch, tokens, channels] = [a.dim(0), a.dim(1), a.dim(2)];
  const chunks = Math.ceil(tokens / chunkTokens);
  const out = empty(device, a.shape);
  if (a.size === 0) return out;
  const factors = empty(device, [batch, chunks, channels]);
  const ends = empty(device, [batch, chunks, channels]);
  const starts = empty(device, [batch, chunks, channels]);
  const wide = Math.ceil(channels / 64);
  chunkEnds.run(device, {
    spec: { reverse },
    tensors: { a, b, factors, ends },
    uniforms: { tokens, channels, chunks },
    grid: [wide, chunks, batch],
  });
  chunkStarts.run(device, {
    spec: { initial: initial !== undefined },
    tensors: { factors, ends, initial, starts },
    uniforms: { channels, chunks },
    grid: [wide, batch, 1],
  });
  chunkStates.run(device, {
    spec: { reverse },
    tensors: { a, b, starts, out },
    uniforms: { tokens, channels, chunks },
    grid: [wide, chunks, batch],
  });
  return out;
}

/**
 * First-order recurrence along tokens, channel by channel: s_t = a_t s_(t-1) + b_t.
 * @param a factors, f32 [batch, tokens, channels]
 * @param b inputs, f32, the shape of a
 * @param options.initialState s before the first token, f32 [batch, channels]. Default zeros
 * @returns s, the shape of a; differentiable in a, b and the initial state
 */
export function recurrence(a: Tensor, b: Tensor, options: { initialState?: Tensor } = {}): Tensor {
  const { initialState } = options;
  if (a.rank !== 3 || a.shape.join() !== b.shape.join())
    throw new HeedError('SHAPE_MISMATCH', `recurrence: a is ${a.describe()}, b is ${b.describe()}; both must be [batch, tokens, channels]`);
  if (initialState && initialState.shape.join() !== [a.dim(0), a.dim(2)].join()) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `recurrence: initialState is ${initialState.describe()}; it must be [${a.dim(0)}, ${a.dim(2)}], batch and channels of a`,
    );
  }
  const inputs = initialState ? [a, b, initialState] : [a, b];
  return apply({
    name: 'recurrence',
    inputs,
    forward: () => scan(asContiguous(a, 1), asContiguous(b, 1), initialState && asContiguous(initialState, 1), false),
    saves: ([states]) => (states ? [a, states, ...(initialState ? [initialState] : [])] : []),
    backward: ([dOut], { saved: [factors, states, start], needs }) => {
      if (!dOut || !factors || !states) return inputs.map(() => null);
      const { device } = dOut;
      const [tokens, channels] = [states.dim(1), states.dim(2)];
      const own = asContiguous(factors, 1);
      const dState = scan(own, asContiguous(dOut, 1), undefined, true);
      const dFactors = empty(device, states.shape);
      factorGradient.run(device, {
        spec: { initial: start !== undefined },
        tensors: { dState, states, initial: start && asContiguous(start, 1), out: dFactors },
        uniforms: { tokens, channels, size: states.size },
        grid: [Math.ceil(states.size / 256)],
      });
      if (!start || !needs[2]) return [dFactors, dState, null];
      const dInitial = empty(device, start.shape);
      initialGradient.run(device, {
        spec: {},
        tensors: { a: own, dState, out: dInitial },
        uniforms: { tokens, channels, size: start.size },
        grid: [Math.ceil(start.size / 256)],
      });
      return [dFactors, dState, dInitial];
    },
  });
}
