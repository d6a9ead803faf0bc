import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { type LaneForm, laneArguments, laneBuiltins, laneForm, type LaneScalar, lanesFor, lanesWgsl } from '../kernel/wgsl/lanes.js';
import { range } from '../kernel/modules.js';
import { copyContiguous, mergeAxes, stridedOffset } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import { contiguousStrides, type Shape, type Tensor } from '../tensor/tensor.js';
import { product } from './check.js';
import { type Finish, type Reduction, type ReductionText, reductionText, scalarOf } from './reduction-text.js';

export type { Reduction } from './reduction-text.js';

// Reductions without gradients: what the ops in reduce.ts, and the gradients of broadcasting ops, are made of.

type ReduceSpec = {
  kind: Reduction;
  finish: Finish;
  type: LaneScalar;
  /** `whole`: elements to results. `first`: elements to partial states. `second`: partial states to results. */
  stage: 'whole' | 'first' | 'second';
  width: number;
  lanes: number;
  /** Loads of a lane that wait together. */
  flight: number;
  form: LaneForm;
};

const isSecond = (spec: ReduceSpec): boolean => spec.stage === 'second';
const isFirst = (spec: ReduceSpec): boolean => spec.stage === 'first';
const hasPair = ({ kind, type }: ReduceSpec): boolean => reductionText(kind, type).parts.length === 2;

const bindings = {
  x: read<ReduceSpec>('any', { width: (s) => s.width, when: (s) => !isSecond(s) }),
  inA: read<ReduceSpec>('any', { when: isSecond }),
  inB: read<ReduceSpec>('any', { when: (s) => isSecond(s) && hasPair(s) }),
  out: write<ReduceSpec>('any', { when: (s) => !isFirst(s) }),
  outA: write<ReduceSpec>('any', { when: isFirst }),
  outB: write<ReduceSpec>('any', { when: (s) => isFirst(s) && hasPair(s) }),
};

/** Struct and combine of states whose fields are vectors of `width`. */
function wideText(text: ReductionText, width: number): string {
  const wide = (scalar: string): string => (width === 1 ? scalar : `vec4<${scalar}>`);
  const [a, b] = text.parts;
  const element = (c: string): string => `State(x.a.${c}${b ? `, x.b.${c}` : ''})`;
  return `
struct Wide { a: ${wide(a)}${b ? `, b: ${wide(b)}` : ''} }
fn combineWide(x: Wide, y: Wide) -> Wide { ${text.combine('Wide')} }
fn identityWide() -> Wide { return Wide(${text.identity.map((value, i) => `${wide(text.parts[i] as string)}(${value})`).join(', ')}); }
fn mapWide(v: ${wide(a)}, at: ${wide('u32')}) -> Wide { let one = ${wide('f32')}(1.0); return Wide(${text.map}); }
fn identity() -> State { return State(${text.identity.join(', ')}); }
fn narrow(x: Wide) -> State {
  ${
    width === 1
      ? `return State(x.a${b ? ', x.b' : ''});`
      : `return combine(combine(${['x', 'y'].map(element).join(', ')}), combine(${['z', 'w'].map(element).join(', ')}));`
  }
}`;
}

/** The result of the state `all`; `f` spells a float literal of the state's width. */
function finishText(spec: ReduceSpec, f: (literal: string) => string): string {
  switch (spec.kind) {
    case 'logsumexp':
      return `select(${f('NEG')}, all.a + log(max(all.b, ${f('1e-37')})), all.b > ${f('0.0')})`;
    case 'argmax':
    case 'argmin':
      return 'all.b';
    default: {
      const scaled = spec.type === 'f32' && (spec.kind === 'sum' || spec.kind === 'sumSquares') ? 'all.a * uniforms.factor' : 'all.a';
      return spec.finish === 'sqrt' ? `sqrt(${scaled})` : scaled;
    }
  }
}

// Reduction of rows: `lanes` lanes a row, 256 lanes a workgroup; long rows are cut into chunks whose states a second stage joins.
// tile    256 / lanes rows, vectors of 4 where rows start at multiples of 4 elements
// bytes   reads rows x n x size, writes rows x size; a second stage adds rows x chunks x 8, both ways
// limits  up to 8 row axes of any strides
const reduceRows = defineKernel({
  name: 'reduce-rows',
  bindings,
  uniforms: { shape: 'u32x8', strides: 'u32x8', rank: 'u32', rows: 'u32', n: 'u32', chunk: 'u32', chunks: 'u32', factor: 'f32' },
  modules: [stridedOffset],
  tier: ({ form }: ReduceSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const text = reductionText(spec.kind, spec.type);
    const { lanes, width } = spec;
    const pair = text.parts.length === 2;
    const indexOf = (j: string): string => (width === 4 ? `vec4u(4u * ${j}) + vec4u(0u, 1u, 2u, 3u)` : j);
    const store = isFirst(spec)
      ? `store_outA(row, all.a);${pair ? ' store_outB(row, all.b);' : ''}`
      : `store_out(row, ${finishText(spec, (literal) => literal)});`;
    const sweep = isSecond(spec)
      ? `let start = min(row, uniforms.rows - 1u) * uniforms.n;
    var own = identity();
    for (var j = l; j < uniforms.n; j += ${lanes}u) { own = combine(own, State(load_inA(start + j)${pair ? ', load_inB(start + j)' : ''})); }`
      : `let at = min(row, uniforms.rows - 1u);
    let start = stridedOffset(at / uniforms.chunks, uniforms.rank, uniforms.shape, uniforms.strides) / ${width}u;
    let begin = (at % uniforms.chunks) * uniforms.chunk;
    let end = min(begin + uniforms.chunk, uniforms.n);
    var wide = identityWide();
    var j = begin + l;
    ${
      spec.flight > 1
        ? `for (; j + ${(spec.flight - 1) * lanes}u < end; j += ${spec.flight * lanes}u) {
      // several loads wait together
      ${range(spec.flight)
        .map((i) => `let x${i} = load_x(start + j + ${i * lanes}u);`)
        .join(' ')}
      ${range(spec.flight)
        .map((i) => `wide = combineWide(wide, mapWide(x${i}, ${indexOf(`(j + ${i * lanes}u)`)}));`)
        .join(' ')}
    }`
        : ''
    }
    for (; j < end; j += ${lanes}u) { wide = combineWide(wide, mapWide(load_x(start + j), ${indexOf('j')})); }
    let own = narrow(wide);`;
    return `
  ${lanesWgsl(text, spec.form, lanes, 256)}
  ${wideText(text, width)}
  @compute @workgroup_size(256)
  fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(spec.form)}) {
    let l = lane % ${lanes}u;
    let row = workgroupIndex(group, groups) * ${256 / lanes}u + lane / ${lanes}u;
    ${sweep}
    let all = reduceLanes(own, lane${laneArguments(spec.form)});
    if (row < uniforms.rows && l == 0u) { ${store} }
  }`;
  },
});

// Reduction of columns: x is [outer, n, inner]; lanes lie along inner, several lanes share a column and join through workgroup
// memory; many rows are cut into chunks whose states a second stage joins.
// tile    `lanes` columns (of 4 elements) x 256 / lanes slices of n
// bytes   reads outer x n x inner x size, writes outer x inner x size
// limits  up to 8 outer axes of any strides
const reduceColumns = defineKernel({
  name: 'reduce-columns',
  bindings: {
    ...bindings,
    inA: read<ReduceSpec>('any', { width: (s) => s.width, when: isSecond }),
    inB: read<ReduceSpec>('any', { width: (s) => s.width, when: (s) => isSecond(s) && hasPair(s) }),
    out: write<ReduceSpec>('any', { width: (s) => s.width, when: (s) => !isFirst(s) }),
    outA: write<ReduceSpec>('any', { width: (s) => s.width, when: isFirst }),
    outB: write<ReduceSpec>('any', { width: (s) => s.width, when: (s) => isFirst(s) && hasPair(s) }),
  },
  uniforms: {
    shape: 'u32x8',
    strides: 'u32x8',
    rank: 'u32',
    outer: 'u32',
    n: 'u32',
    stride: 'u32',
    inner: 'u32',
    chunk: 'u32',
    chunks: 'u32',
    factor: 'f32',
  },
  modules: [stridedOffset],
  wgsl: (spec: ReduceSpec) => {
    const text = reductionText(spec.kind, spec.type);
    const { lanes, width } = spec;
    const [a, b] = text.parts;
    const slices = 256 / lanes;
    const wide = (scalar: string): string => (width === 1 ? scalar : `vec4<${scalar}>`);
    const load = isSecond(spec)
      ? `Wide(load_inA(start + j * uniforms.stride)${b ? ', load_inB(start + j * uniforms.stride)' : ''})`
      : `mapWide(load_x(start + j * uniforms.stride), ${wide('u32')}(j))`;
    const finish = finishText(spec, (literal) => `${wide('f32')}(${literal})`);
    const store = isFirst(spec) ? `store_outA(to, all.a);${b ? ' store_outB(to, all.b);' : ''}` : `store_out(to, ${finish});`;
    return `
  struct State { a: ${a}${b ? `, b: ${b}` : ''} }
  fn combine(x: State, y: State) -> State { ${text.combine('State')} }
  ${wideText(text, width)}
  var<workgroup> sliceA: array<${wide(a)}, 256>;
  ${b ? `var<workgroup> sliceB: array<${wide(b)}, 256>;` : ''}
  @compute @workgroup_size(256)
  fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
    let tiles = (uniforms.inner + ${lanes - 1}u) / ${lanes}u;
    let index = workgroupIndex(group, groups);
    let column = (index % tiles) * ${lanes}u + lane % ${lanes}u;
    let part = (index / tiles) % uniforms.chunks;
    let block = index / tiles / uniforms.chunks;
    let slice = lane / ${lanes}u;
    var own = identityWide();
    if (column < uniforms.inner && block < uniforms.outer) {
      let start = stridedOffset(block, uniforms.rank, uniforms.shape, uniforms.strides) / ${width}u + column;
      let end = min((part + 1u) * uniforms.chunk, uniforms.n);
      for (var j = part * uniforms.chunk + slice; j < end; j += ${slices}u) { own = combineWide(own, ${load}); }
    }
    sliceA[lane] = own.a;
    ${b ? 'sliceB[lane] = own.b;' : ''}
    workgroupBarrier();
    if (slice == 0u && column < uniforms.inner && block < uniforms.outer) {
      var all = own;
      for (var at = lane + ${lanes}u; at < 256u; at += ${lanes}u) {
        all = combineWide(all, Wide(sliceA[at]${b ? ', sliceB[at]' : ''}));
      }
      let to = (block * uniforms.chunks + part) * uniforms.inner + column;
      ${store}
    }
  }`;
  },
});

/** How a run of axes is cut up; pure, so that it is tested without a device. */
export interface ReducePlan {
  width: 1 | 4;
  lanes: number;
  /** Items of a row or rows of a column that one workgroup takes. */
  chunk: number;
  chunks: number;
}

/** Workgroups that fill a large GPU; below it long reductions are cut. */
const fullGrid = 1024;

/** @param items vectors (or elements) a row */
export function planRows(rows: number, items: number, width: 1 | 4): ReducePlan {
  const lanes = lanesFor(items);
  const wanted = Math.min(Math.ceil(items / 1024), Math.ceil(fullGrid / Math.max(1, rows)));
  const chunks = rows < fullGrid / 4 && items >= 4096 ? Math.max(1, wanted) : 1;
  const chunk = Math.max(1, Math.ceil(items / chunks));
  return { width, lanes, chunk, chunks: Math.max(1, Math.ceil(items / chunk)) };
}

/** Lanes side by side on columns; the others of 256 share rows. */
function columnLanes(inner: number): 1 | 8 | 32 {
  return inner <= 2 ? 1 : inner <= 16 ? 8 : 32;
}

/** @param inner vectors (or elements) a row of columns */
export function planColumns(outer: number, n: number, inner: number, width: 1 | 4): ReducePlan {
  const lanes = columnLanes(inner);
  const groups = outer * Math.ceil(inner / lanes);
  const slices = 256 / lanes;
  const wanted = Math.min(Math.ceil(n / (8 * slices)), Math.ceil(fullGrid / Math.max(1, groups)));
  const chunk = Math.max(1, Math.ceil(n / Math.max(1, wanted)));
  return { width, lanes, chunk, chunks: Math.max(1, Math.ceil(n / chunk)) };
}

export interface ReduceOptions {
  dtype: DType;
  /** On sums, before the square root. */
  factor?: number;
  finish?: Finish;
}

/** Reduces axes (ascending); the result keeps them with length 1. The caller has checked that maxima are of something. */
export function reduceAxes(kind: Reduction, x: Tensor, axes: readonly number[], options: ReduceOptions): Tensor {
  const { factor = 1, finish = 'none', dtype } = options;
  const runs = runsOf(x, axes);
  if (runs.length === 0) runs.push([x.rank, x.rank]);
  let current = x;
  runs.forEach((run, i) => {
    const last = i === runs.length - 1;
    const own: Reduction = kind === 'sumSquares' && i > 0 ? 'sum' : kind;
    const out = last ? dtype : scalarOf(x.dtype);
    current = reduceRun(own, current, run, { dtype: out, factor: last ? factor : 1, finish: last ? finish : 'none' });
  });
  return current;
}

type Run = readonly [start: number, end: number];

/** Neighbouring reduced axes that lie behind each other, from the last to the first. */
function runsOf(x: Tensor, axes: readonly number[]): Run[] {
  const runs: [number, number][] = [];
  for (const axis of [...axes].reverse()) {
    const run = runs.at(-1);
    const joins =
      run !== undefined && run[0] === axis + 1 && mergeAxes(x.shape.slice(axis, run[1]), x.strides.slice(axis, run[1])).shape.length === 1;
    if (joins) run[0] = axis;
    else runs.push([axis, axis + 1]);
  }
  return runs;
}

function reduceRun(kind: Reduction, source: Tensor, [start, end]: Run, options: Required<ReduceOptions>): Tensor {
  const { device, shape } = source;
  const outShape = shape.map((n, axis) => (axis >= start && axis < end ? 1 : n));
  const out = empty(device, outShape, options.dtype);
  const innerMerged = mergeAxes(shape.slice(end), source.strides.slice(end));
  const inner = product(shape, end);
  const plainInner = inner === 1 || (innerMerged.shape.length === 1 && innerMerged.strides[0] === 1);
  const x = plainInner ? source : copyContiguous(source);
  const n = product(shape, start, end);
  const run = mergeAxes(shape.slice(start, end), x.strides.slice(start, end));
  const stride = n === 1 ? 1 : (run.strides[0] ?? 1);
  const kept = mergeAxes(shape.slice(0, start), x.strides.slice(0, start));
  const outer = product(shape, 0, start);
  const base = { shape: kept.shape, strides: kept.strides, rank: kept.shape.length, factor: options.factor };
  const type = scalarOf(x.dtype);
  if (inner === 1 && stride === 1) {
    const aligned = n % 4 === 0 && x.offset % 4 === 0 && (outer === 1 || kept.strides.every((s) => s % 4 === 0));
    const width = aligned ? 4 : 1;
    const plan = planRows(outer, n / width, width);
    // software drivers compile short texts fast
    const flight = device.isSoftware || plan.lanes < 256 ? 1 : 4;
    const spec = {
      kind,
      finish: options.finish,
      type,
      width,
      lanes: plan.lanes,
      flight,
      form: laneForm(plan.lanes, device.capabilities),
    } as const;
    const rows = outer * plan.chunks;
    // own fields in front of what is spread: V8 makes such objects faster
    const first = { rows, n: n / width, chunk: plan.chunk, chunks: plan.chunks, ...base };
    const grid = [Math.ceil(rows / (256 / plan.lanes))];
    if (plan.chunks === 1) {
      reduceRows.run(device, { spec: { stage: 'whole', ...spec }, tensors: { x, out }, uniforms: first, grid });
      return out;
    }
    const { outA, outB } = partials(device, kind, type, rows);
    reduceRows.run(device, { spec: { stage: 'first', ...spec }, tensors: { x, outA, outB }, uniforms: first, grid });
    const lanes = lanesFor(plan.chunks);
    reduceRows.run(device, {
      spec: { ...spec, stage: 'second', width: 1, lanes, form: laneForm(lanes, device.capabilities) },
      tensors: { inA: outA, inB: outB, out },
      uniforms: { ...first, rows: outer, n: plan.chunks },
      grid: [Math.ceil(outer / (256 / lanes))],
    });
    return out;
  }
  const aligned = inner % 4 === 0 && x.offset % 4 === 0 && stride % 4 === 0 && (outer === 1 || kept.strides.every((s) => s % 4 === 0));
  const width = aligned ? 4 : 1;
  const plan = planColumns(outer, n, inner / width, width);
  const spec = { kind, finish: options.finish, type, width, lanes: plan.lanes, flight: 1, form: 'memory' } as const;
  const first = { outer, n, stride: stride / width, inner: inner / width, chunk: plan.chunk, chunks: plan.chunks, ...base };
  const tiles = Math.ceil(inner / width / plan.lanes);
  const grid = [tiles * plan.chunks * outer];
  if (plan.chunks === 1) {
    reduceColumns.run(device, { spec: { stage: 'whole', ...spec }, tensors: { x, out }, uniforms: first, grid });
    return out;
  }
  const { outA, outB } = partials(device, kind, type, outer * plan.chunks * inner);
  reduceColumns.run(device, { spec: { stage: 'first', ...spec }, tensors: { x, outA, outB }, uniforms: first, grid });
  reduceColumns.run(device, {
    spec: { stage: 'second', ...spec },
    tensors: { inA: outA, inB: outB, out },
    uniforms: {
      ...first,
      shape: [outer],
      strides: [plan.chunks * inner],
      rank: 1,
      n: plan.chunks,
      stride: inner / width,
      chunk: plan.chunks,
      chunks: 1,
    },
    grid: [tiles * outer],
  });
  return out;
}

function partials(device: Device, kind: Reduction, type: LaneScalar, count: number): { outA: Tensor; outB: Tensor | undefined } {
  const { parts } = reductionText(kind, type);
  const second = parts[1];
  return { outA: empty(device, [count], parts[0]), outB: second === undefined ? undefined : empty(device, [count], second) };
}

/** Sum over the axes along which `shape` was stretched to that of x; gradients of broadcasting ops end so. */
export function sumTo(x: Tensor, shape: Shape, dtype: DType): Tensor {
  const lead = x.rank - shape.length;
  const axes = x.shape.map((_, axis) => axis).filter((axis) => axis < lead || (shape[axis - lead] === 1 && x.shape[axis] !== 1));
  const summed = reduceAxes('sum', x, axes, { dtype });
  return summed.view({ shape, strides: contiguousStrides(shape) });
}
