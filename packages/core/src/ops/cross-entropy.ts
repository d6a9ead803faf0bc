import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { range } from '../kernel/modules.js';
import { laneArguments, laneBuiltins, lanesWgsl, softmaxState } from '../kernel/wgsl/lanes.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { expectDType, expectFloat, expectShape } from './check.js';
import { itemType, rowGrid, type RowSpec, rowSpec } from './row-kernels.js';

interface LossSpec extends RowSpec {
  /** Loads of a lane that wait together. */
  flight: number;
}

/** Joins loaded items to `largest` and `sum`. */
function joinItems(loads: readonly string[]): string {
  const names = loads.map((_, i) => `x${i}`);
  return `
        ${loads.map((load, i) => `let x${i} = ${load};`).join(' ')}
        let next = ${names.reduce((text, x) => `max(${text}, ${x})`, 'largest')};
        sum = sum * exp(largest - next) + ${names.map((x) => `exp(${x} - next)`).join(' + ')};
        largest = next;`;
}

// Loss of each row, and its logsumexp, which is all that the way back needs.
// tile    256 / lanes rows a workgroup
// bytes   reads n + 1 elements and 4, writes 8 a row
// limits  n >= 1; a target beyond the classes counts as the last one
// source  Milakov, Gimelshein 2018, algorithm 3 (online normaliser)
const rowLosses = defineKernel({
  name: 'cross-entropy-rows',
  bindings: { x: read<LossSpec>('float', { width: (s) => s.width }), targets: read('u32'), losses: write('f32'), lse: write('f32') },
  uniforms: { rows: 'u32', n: 'u32', ignored: 'u32' },
  tier: ({ form }: LossSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: ({ width, lanes, invocations, form, flight }) => `
    ${lanesWgsl(softmaxState, form, lanes, invocations)}
    @compute @workgroup_size(${invocations})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(form)}) {
      let l = lane % ${lanes}u;
      let row = workgroupIndex(group, groups) * ${invocations / lanes}u + lane / ${lanes}u;
      let start = min(row, uniforms.rows - 1u) * uniforms.n;
      var largest = ${itemType(width)}(NEG);
      var sum = ${itemType(width)}(0.0);
      var j = l;
      ${flight > 1 ? `for (; j + ${(flight - 1) * lanes}u < uniforms.n; j += ${flight * lanes}u) { ${joinItems(range(flight).map((i) => `load_x(start + j + ${i * lanes}u)`))} }` : ''}
      for (; j < uniforms.n; j += ${lanes}u) { ${joinItems(['load_x(start + j)'])} }
      ${
        width === 4
          ? `let top = max(max(largest.x, largest.y), max(largest.z, largest.w));
      let own = State(top, dot(sum, exp(largest - vec4f(top))));`
          : 'let own = State(largest, sum);'
      }
      let all = reduceLanes(own, lane${laneArguments(form)});
      if (row >= uniforms.rows || l != 0u) { return; }
      let lse = all.a + log(max(all.b, 1e-37));
      let chosen = load_targets(row);
      var loss = 0.0;
      if (chosen != uniforms.ignored) {
        let at = min(chosen, uniforms.n * ${width}u - 1u);
        loss = lse - load_x(start + at / ${width}u)${width === 4 ? '[at % 4u]' : ''};
      }
      store_losses(row, loss);
      store_lse(row, lse);
    }`,
});

// Sum of the rows' losses and of the rows that count, as total / count and 1 / count.
// tile    all rows x 256 lanes, one workgroup: the order of the sum is fixed
// bytes   reads 8 a row, writes 8
// limits  without a row that counts the loss is 0
const meanLoss = defineKernel({
  name: 'cross-entropy-mean',
  bindings: { losses: read('f32'), targets: read('u32'), out: write('f32'), weight: write('f32') },
  uniforms: { rows: 'u32', ignored: 'u32', mean: 'u32' },
  wgsl: () => `
    var<workgroup> sums: array<f32, 256>;
    var<workgroup> counts: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(local_invocation_index) lane: u32) {
      var sum = 0.0;
      var count = 0.0;
      for (var i = lane; i < uniforms.rows; i += 256u) {
        sum += load_losses(i);
        count += select(1.0, 0.0, load_targets(i) == uniforms.ignored);
      }
      sums[lane] = sum;
      counts[lane] = count;
      for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (lane < half) { sums[lane] += sums[lane + half]; counts[lane] += counts[lane + half]; }
      }
      if (lane == 0u) {
        let share = select(1.0, 1.0 / max(counts[0], 1.0), uniforms.mean == 1u);
        store_out(0u, sums[0] * share);
        store_weight(0u, share);
      }
    }`,
});

// dLogits = (softmax - one hot) * share * dLoss; rows that are ignored give zeros.
// tile    1 item (of 4 elements where rows allow) a lane, 256 lanes
// bytes   reads n elements and 8 (12 where each row has a cotangent of its own), writes n elements a row
// limits  n >= 1
const logitGradients = defineKernel({
  name: 'cross-entropy-backward',
  bindings: {
    x: read<BackwardSpec>('float', { width: (s) => s.width }),
    targets: read('u32'),
    lse: read('f32'),
    weight: read('f32', { when: (s: BackwardSpec) => !s.perRow }),
    g: read('f32'),
    out: write<BackwardSpec>('float', { width: (s) => s.width }),
  },
  uniforms: { items: 'u32', n: 'u32', ignored: 'u32' },
  wgsl: ({ width, perRow }: BackwardSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = i / uniforms.n;
      let chosen = load_targets(row);
      let share = ${perRow ? 'load_g(row)' : 'load_weight(0u) * load_g(0u)'};
      let column = (i % uniforms.n) * ${width}u;
      let hit = ${width === 4 ? 'select(vec4f(0.0), vec4f(1.0), vec4u(column) + vec4u(0u, 1u, 2u, 3u) == vec4u(chosen))' : 'select(0.0, 1.0, column == chosen)'};
      store_out(i, (exp(load_x(i) - load_lse(row)) - hit) * select(share, 0.0, chosen == uniforms.ignored));
    }`,
});

interface BackwardSpec {
  [name: string]: string | number | boolean;
  width: number;
  perRow: boolean;
}

export interface CrossEntropyOptions {
  /** Rows with this target count for nothing. Default: none. */
  ignoreIndex?: number;
  /** `mean` over the rows that count (default), `sum`, or `none` for the loss of each row. */
  reduction?: 'mean' | 'sum' | 'none';
}

const noTarget = 0xffffffff;

/**
 * Cross-entropy of logits against target classes, in nats; softmax and logarithm are fused, only the logsumexp is kept.
 * @param logits [rows, classes], f32 or f16
 * @param targets u32 [rows], every one below classes, or ignoreIndex
 * @param options see `CrossEntropyOptions`: mean over all rows by default
 * @returns f32 [] (mean over the rows that count, or sum), or f32 [rows]; differentiable in the logits
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function crossEntropy(logits: Tensor, targets: Tensor, options: CrossEntropyOptions = {}): Tensor {
  const { ignoreIndex: ignored = noTarget, reduction = 'mean' } = options;
  expectFloat('crossEntropy', 'logits', logits);
  expectDType('crossEntropy', 'targets', targets, ['u32']);
  if (logits.rank !== 2 || logits.dim(1) === 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `crossEntropy: logits is ${logits.describe()}; it must be [rows, classes] with a class at least (reshape it)`,
    );
  const [count, classes] = [logits.dim(0), logits.dim(1)];
  expectShape('crossEntropy', 'targets', targets, [count], 'one class a row of logits');
  const { device } = logits;
  const perRow = reduction === 'none';
  const outputs = apply<readonly Tensor[]>({
    name: 'crossEntropy',
    inputs: [logits, targets],
    forward: () => {
      const losses = empty(device, [count]);
      const lse = empty(device, [count]);
      const own = rowSpec(classes, true, device.capabilities, { once: true });
      // long rows: several loads of a lane wait together; software drivers compile short texts fast
      const spec = { ...own, flight: own.lanes === 256 && !device.isSoftware ? 4 : 1 };
      const classOf = asContiguous(targets, 1);
      rowLosses.run(device, {
        spec,
        tensors: { x: asContiguous(logits), targets: classOf, losses, lse },
        uniforms: { rows: count, n: classes / spec.width, ignored },
        grid: rowGrid(count, spec),
      });
      if (perRow) return [losses, lse];
      const out = empty(device, []);
      const weight = empty(device, [1]);
      meanLoss.run(device, {
        spec: {},
        tensors: { losses, targets: classOf, out, weight },
        uniforms: { rows: count, ignored, mean: reduction === 'mean' ? 1 : 0 },
        grid: [1],
      });
      return [out, lse, weight];
    },
    saves: ([, ...kept]) => [logits, targets, ...kept],
    backward: ([g], { saved: [x, classOf, lse, weight] }) => {
      if (!g || !x || !classOf || !lse) return [null, null];
      const width = classes % 4 === 0 ? 4 : 1;
      const out = empty(device, x.shape, x.dtype);
      const items = x.size / width;
      logitGradients.run(device, {
        spec: { width, perRow },
        tensors: {
          x: asContiguous(x),
          targets: asContiguous(classOf, 1),
          lse,
          weight: perRow ? undefined : weight,
          g: asContiguous(g, 1),
          out,
        },
        uniforms: { items, n: classes / width, ignored },
        grid: [Math.ceil(items / 256)],
      });
      return [out, null];
    },
  });
  const [loss, ...rest] = outputs;
  for (const t of rest) t.dispose();
  return loss as Tensor;
}
