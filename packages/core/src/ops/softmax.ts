import { apply } from '../autodiff/tape.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { laneArguments, laneBuiltins, lanesWgsl, softmaxState, sumState } from '../kernel/wgsl/lanes.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf, expectFloat } from './check.js';
import { holdItems, itemSum, itemType, overItems, rowGrid, type RowSpec, rowSpec } from './row-kernels.js';

interface SoftmaxSpec extends RowSpec {
  log: boolean;
}

// Softmax, or its logarithm, over the last axis.
// tile    256 / lanes rows a workgroup, held in registers where a lane has up to 8 items, else read again for the second pass
// bytes   reads n (2 n where rows are longer), writes n elements a row
// limits  a row whose logits are all NEG or below gives zeros (and NEG for the logarithm)
// source  Milakov, Gimelshein 2018, algorithm 3 (online normaliser)
const softmaxRows = defineKernel({
  name: 'softmax-rows',
  bindings: {
    x: read<SoftmaxSpec>('float', { width: (s) => s.width }),
    out: write<SoftmaxSpec>('float', { width: (s) => s.width }),
  },
  uniforms: { rows: 'u32', n: 'u32' },
  tier: ({ form }: SoftmaxSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const { width, lanes, invocations, form, log } = spec;
    const loads = [{ name: 'x', load: (at: string) => `load_x(start + ${at})`, past: 'NEG' }];
    return `
    ${lanesWgsl(softmaxState, form, lanes, invocations)}
    @compute @workgroup_size(${invocations})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(form)}) {
      let l = lane % ${lanes}u;
      let row = workgroupIndex(group, groups) * ${invocations / lanes}u + lane / ${lanes}u;
      let start = min(row, uniforms.rows - 1u) * uniforms.n;
      var largest = ${itemType(width)}(NEG);
      var sum = ${itemType(width)}(0.0);
      ${holdItems(spec, loads)}
      ${
        spec.held > 0
          ? `${overItems(spec, loads, (value) => `largest = max(largest, ${value('x')});`)}
      ${overItems(spec, loads, (value) => `sum += exp(${value('x')} - largest);`)}`
          : overItems(
              spec,
              loads,
              (value) =>
                `let next = max(largest, ${value('x')}); sum = sum * exp(largest - next) + exp(${value('x')} - next); largest = next;`,
            )
      }
      ${
        width === 4
          ? `let top = max(max(largest.x, largest.y), max(largest.z, largest.w));
      let own = State(top, dot(sum, exp(largest - vec4f(top))));`
          : 'let own = State(largest, sum);'
      }
      let all = reduceLanes(own, lane${laneArguments(form)});
      if (row >= uniforms.rows) { return; }
      let seen = all.a > 0.5 * NEG;
      let lse = all.a + log(max(all.b, 1e-37));
      ${overItems(spec, loads, (value, at) =>
        log
          ? `store_out(start + ${at}, select(${itemType(width)}(NEG), ${value('x')} - lse, seen));`
          : `store_out(start + ${at}, select(${itemType(width)}(0.0), exp(${value('x')} - lse), seen));`,
      )}
    }`;
  },
});

// dx = p (dOut - sum(dOut p)), or with log p at hand dx = dOut - p sum(dOut).
// tile    256 / lanes rows a workgroup
// bytes   reads 2 n (4 n where rows are longer than lanes hold), writes n elements a row
const softmaxBackwardRows = defineKernel({
  name: 'softmax-backward-rows',
  bindings: {
    p: read<SoftmaxSpec>('float', { width: (s) => s.width }),
    g: read<SoftmaxSpec>('float', { width: (s) => s.width }),
    out: write<SoftmaxSpec>('float', { width: (s) => s.width }),
  },
  uniforms: { rows: 'u32', n: 'u32' },
  tier: ({ form }: SoftmaxSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const { width, lanes, invocations, form, log } = spec;
    const loads = ['g', 'p'].map((name) => ({ name, load: (at: string) => `load_${name}(start + ${at})`, past: '0.0' }));
    return `
    ${lanesWgsl(sumState, form, lanes, invocations)}
    @compute @workgroup_size(${invocations})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(form)}) {
      let l = lane % ${lanes}u;
      let row = workgroupIndex(group, groups) * ${invocations / lanes}u + lane / ${lanes}u;
      let start = min(row, uniforms.rows - 1u) * uniforms.n;
      var sum = ${itemType(width)}(0.0);
      ${holdItems(spec, loads)}
      ${overItems(spec, loads, (value) => `sum += ${value('g')}${log ? '' : ` * ${value('p')}`};`)}
      let all = reduceLanes(State(${itemSum(width, 'sum')}), lane${laneArguments(form)});
      if (row >= uniforms.rows) { return; }
      ${overItems(
        spec,
        loads,
        (value, at) =>
          `store_out(start + ${at}, ${log ? `${value('g')} - exp(${value('p')}) * all.a` : `${value('p')} * (${value('g')} - all.a)`});`,
      )}
    }`;
  },
});

function rows(x: Tensor, log: boolean, run: (source: Tensor, out: Tensor, spec: SoftmaxSpec, n: number, count: number) => void): Tensor {
  const n = x.dim(-1);
  const out = empty(x.device, x.shape, x.dtype);
  if (x.size === 0) return out;
  run(asContiguous(x), out, { log, ...rowSpec(n, true, x.device.capabilities, { software: x.device.isSoftware }) }, n, x.size / n);
  return out;
}

function lastAxis(name: string, x: Tensor, log: boolean): Tensor {
  expectFloat(name, 'x', x);
  axisOf(name, x, -1);
  return apply({
    name,
    inputs: [x],
    forward: () =>
      rows(x, log, (source, out, spec, n, count) =>
        softmaxRows.run(x.device, {
          spec,
          tensors: { x: source, out },
          uniforms: { rows: count, n: n / spec.width },
          grid: rowGrid(count, spec),
        }),
      ),
    saves: ([p]) => (p ? [p] : []),
    backward: ([g], { saved: [p] }) => {
      if (!g || !p) return [null];
      return [
        rows(p, log, (source, out, spec, n, count) =>
          softmaxBackwardRows.run(p.device, {
            spec,
            tensors: { p: source, g: asContiguous(g), out },
            uniforms: { rows: count, n: n / spec.width },
            grid: rowGrid(count, spec),
          }),
        ),
      ];
    },
  });
}

/**
 * Softmax over the last axis.
 * @param x logits, [..., n], f32 or f16; statistics are f32
 * @returns probabilities, the shape and dtype of x; rows whose logits are all NEG (-1e30) give zeros. Differentiable
 * @throws HeedError SHAPE_MISMATCH when x has no axis, DTYPE_MISMATCH
 */
export function softmax(x: Tensor): Tensor {
  return lastAxis('softmax', x, false);
}

/**
 * Logarithm of softmax over the last axis: x - logsumexp(x).
 * @param x logits, [..., n], f32 or f16; statistics are f32
 * @returns the shape and dtype of x; rows whose logits are all NEG (-1e30) give NEG. Differentiable
 * @throws HeedError SHAPE_MISMATCH when x has no axis, DTYPE_MISMATCH
 */
export function logSoftmax(x: Tensor): Tensor {
  return lastAxis('logSoftmax', x, true);
}
