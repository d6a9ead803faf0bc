import { HeedError, type Tensor } from '@heed/core';
import { apply, asContiguous, defineKernel, empty, read, write } from '@heed/core/~internal';

interface SweepSpec {
  [name: string]: number | boolean;
  width: number;
  /** States are those before each step, not behind it. */
  before: boolean;
  /** Cotangents that are there (backward). */
  states: boolean;
  last: boolean;
}

const lanes = 256;
const wide = { width: (s: SweepSpec) => s.width };
const zeroOf = (s: SweepSpec): string => (s.width === 4 ? 'vec4f()' : '0.0');

// s_n = a_n s_(n-1) + b_n with one factor a row and step: a recurrence whose state is a whole weight.
// tile    256 lanes x 4 elements of one row, a serial walk over its steps; nothing is shared
// bytes   reads b once, writes states once: rows x steps x size x 8
// limits  size a multiple of 4 for vectors; neighbouring lanes read neighbouring items
// source  Behrouz et al. 2024, equations 9, 10 and 13
const sweep = defineKernel({
  name: 'titans-recurrence',
  bindings: {
    factors: read<SweepSpec>('f32'),
    b: read<SweepSpec>('f32', wide),
    initial: read<SweepSpec>('f32', wide),
    out: write<SweepSpec>('f32', wide),
    last: write<SweepSpec>('f32', wide),
  },
  uniforms: { rows: 'u32', steps: 'u32', items: 'u32', tiles: 'u32' },
  wgsl: (s: SweepSpec) => `
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      let row = index / uniforms.tiles;
      let item = (index % uniforms.tiles) * ${lanes}u + lane;
      if (row >= uniforms.rows || item >= uniforms.items) { return; }
      var state = load_initial(row * uniforms.items + item);
      for (var n = 0u; n < uniforms.steps; n++) {
        let at = (row * uniforms.steps + n) * uniforms.items + item;
        ${s.before ? 'store_out(at, state);' : ''}
        state = load_factors(row * uniforms.steps + n) * state + load_b(at);
        ${s.before ? '' : 'store_out(at, state);'}
      }
      store_last(row * uniforms.items + item, state);
    }`,
});

// The same backwards: ds_(n-1) = a_n ds_n + what reaches state n - 1 itself; db_n = ds_n, dInitial = ds_0.
// tile    as the sweep
// bytes   reads dStates once, writes db once
const sweepBack = defineKernel({
  name: 'titans-recurrence-backward',
  bindings: {
    factors: read<SweepSpec>('f32'),
    dStates: read<SweepSpec>('f32', { ...wide, when: (s) => s.states }),
    dLast: read<SweepSpec>('f32', { ...wide, when: (s) => s.last }),
    out: write<SweepSpec>('f32', wide),
    dInitial: write<SweepSpec>('f32', wide),
  },
  uniforms: { rows: 'u32', steps: 'u32', items: 'u32', tiles: 'u32' },
  wgsl: (s: SweepSpec) => `
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      let row = index / uniforms.tiles;
      let item = (index % uniforms.tiles) * ${lanes}u + lane;
      if (row >= uniforms.rows || item >= uniforms.items) { return; }
      var g = ${s.last ? 'load_dLast(row * uniforms.items + item)' : zeroOf(s)};
      for (var i = uniforms.steps; i > 0u; i--) {
        let at = (row * uniforms.steps + i - 1u) * uniforms.items + item;
        ${s.states && !s.before ? 'g += load_dStates(at);' : ''}
        store_out(at, g);
        g = load_factors(row * uniforms.steps + i - 1u) * g;
        ${s.states && s.before ? 'g += load_dStates(at);' : ''}
      }
      store_dInitial(row * uniforms.items + item, g);
    }`,
});

// da_n = ds_n . s_(n-1), one workgroup a row and step.
// tile    256 lanes, partial sums in workgroup memory (1 KiB), added in one order
// bytes   reads ds and s once
const factorDots = defineKernel({
  name: 'titans-recurrence-dots',
  bindings: {
    ds: read<SweepSpec>('f32', wide),
    states: read<SweepSpec>('f32', wide),
    initial: read<SweepSpec>('f32', { ...wide, when: (s) => !s.before }),
    out: write<SweepSpec>('f32'),
  },
  uniforms: { steps: 'u32', items: 'u32', size: 'u32' },
  wgsl: (s: SweepSpec) => `
    var<workgroup> partial: array<f32, ${lanes}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let place = workgroupIndex(group, groups);
      var sum = 0.0;
      if (place < uniforms.size) {
        for (var item = lane; item < uniforms.items; item += ${lanes}u) {
          let at = place * uniforms.items + item;
          ${
            s.before
              ? 'let state = load_states(at);'
              : `var state = ${zeroOf(s)};
          if (place % uniforms.steps == 0u) { state = load_initial((place / uniforms.steps) * uniforms.items + item); }
          else { state = load_states(at - uniforms.items); }`
          }
          sum += ${s.width === 4 ? 'dot(load_ds(at), state)' : 'load_ds(at) * state'};
        }
      }
      partial[lane] = sum;
      for (var half = ${lanes / 2}u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) { partial[lane] += partial[lane + half]; }
      }
      if (lane == 0u && place < uniforms.size) { store_out(place, partial[0]); }
    }`,
});

/**
 * s_n = factors_n s_(n-1) + b_n over whole weights.
 * @param factors f32 [batch, heads, steps]
 * @param b f32 [batch, heads, steps, ...weight]
 * @param initial s_0, f32 [batch, heads, ...weight]
 * @param before gives s_0 .. s_(steps-1), which readers of a step see; else s_1 .. s_steps
 * @returns states, the shape of b, and the last one; differentiable in all three
 */
export function weightRecurrence(factors: Tensor, b: Tensor, initial: Tensor, before: boolean): { states: Tensor; last: Tensor } {
  const steps = b.dim(2);
  const rows = b.dim(0) * b.dim(1);
  const size = initial.size / Math.max(1, rows);
  if (factors.shape.join() !== b.shape.slice(0, 3).join() || b.size !== rows * steps * size)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `titans: factors ${factors.describe()}, inputs ${b.describe()} and initial weights ${initial.describe()} of a recurrence do not fit; they are [batch, heads, steps], [batch, heads, steps, ...weight] and [batch, heads, ...weight]`,
    );
  const width = size % 4 === 0 ? 4 : 1;
  const items = size / width;
  const tiles = Math.ceil(items / lanes);
  const uniforms = { rows, steps, items, tiles };
  const grid = [tiles * rows];
  const [states, last] = apply<readonly Tensor[]>({
    name: 'titans recurrence',
    inputs: [factors, b, initial],
    forward: () => {
      const out = empty(b.device, b.shape);
      const end = empty(b.device, initial.shape);
      sweep.run(b.device, {
        spec: { width, before, states: false, last: false },
        tensors: { factors: asContiguous(factors), b: asContiguous(b, width), initial: asContiguous(initial, width), out, last: end },
        uniforms,
        grid,
      });
      return [out, end];
    },
    saves: ([out]) => (out ? [factors, initial, out] : []),
    backward: ([dStates, dLast], { saved: [a, s0, s], needs }) => {
      if (!a || !s0 || !s || (!dStates && !dLast)) return [null, null, null];
      const { device } = s;
      const out = empty(device, s.shape);
      const dInitial = empty(device, s0.shape);
      sweepBack.run(device, {
        spec: { width, before, states: dStates !== null && dStates !== undefined, last: dLast !== null && dLast !== undefined },
        tensors: {
          factors: asContiguous(a),
          dStates: dStates ? asContiguous(dStates, width) : undefined,
          dLast: dLast ? asContiguous(dLast, width) : undefined,
          out,
          dInitial,
        },
        uniforms,
        grid,
      });
      if (!needs[0]) return [null, out, dInitial];
      const dFactors = empty(device, a.shape);
      factorDots.run(device, {
        spec: { width, before, states: false, last: false },
        tensors: { ds: out, states: s, initial: before ? undefined : asContiguous(s0, width), out: dFactors },
        uniforms: { steps, items, size: rows * steps },
        grid: [rows * steps],
      });
      return [dFactors, out, dInitial];
    },
  }) as [Tensor, Tensor];
  return { states, last };
}
