// What the attention kernels on fragments share: rows of f16 staged in workgroup memory, rounded from f32 where need be.
import type { Binding } from '../../kernel/bindings.js';
import { fragmentLanes, type Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { ScoreSpec } from './common.js';

/** Rows are loaded by eight halves, by four elements of either dtype, or one by one. */
export type RowLoad = 'half8' | 'vec4' | 'scalar';

/** The tile of a kernel on fragments. A subgroup owns 16 rows. */
export type MatrixTileSpec = {
  subgroups: number;
  /** Streamed rows a step; a multiple of 16. */
  columns: number;
  /** Columns of a result fragment. */
  fragmentColumns: number;
  load: RowLoad;
};

export type MatrixSpec = ScoreSpec & MatrixTileSpec & { rows: number };

/** Halves that pad a staged row against bank conflicts. */
export const rowPad = 8;
/** Floats that pad a row of scores. */
export const scorePad = 4;

/** Head dimension padded to whole fragments. */
export function padded(dim: number): number {
  return Math.ceil(dim / 16) * 16;
}

/** Halves of a staged row. */
export function stagedStride(dim: number): number {
  return padded(dim) + rowPad;
}

/** Binding of a tensor whose rows are staged. */
export function rowBinding<S extends MatrixSpec>(): Omit<Binding<S>, 'access' | 'type'> {
  return {
    width: (spec) => (spec.load === 'vec4' ? 4 : 1),
    raw: (spec) => (spec.load === 'half8' ? 'vec4u' : undefined),
  };
}

/** `eight_<binding>(base, row, end, chunk)`: halves 8 chunk .. 8 chunk + 7 of a row; zeros from row `end` on and beyond `dim`. */
export function eightLoader(binding: string, dim: number, load: RowLoad): string {
  const row = `base + row * uniforms.${binding}Row`;
  const quad = (q: number): string =>
    `select(vec4f(), load_${binding}(${row} + min(chunk * 2u + ${q}u, ${dim / 4 - 1}u)), chunk * 2u + ${q}u < ${dim / 4}u)`;
  const body: Record<RowLoad, () => string> = {
    half8: () => `return ${binding}[base_${binding}() + ${row} + chunk];`,
    vec4: () => `return halves(${quad(0)}, ${quad(1)});`,
    scalar: () => `
      var value: array<f32, 8>;
      for (var e = 0u; e < 8u * uniforms.one; e++) { if (chunk * 8u + e < ${dim}u) { value[e] = load_${binding}(${row} + chunk * 8u + e); } }
      return halves(vec4f(value[0], value[1], value[2], value[3]), vec4f(value[4], value[5], value[6], value[7]));`,
  };
  return `
    fn eight_${binding}(base: u32, row: u32, end: u32, chunk: u32) -> vec4u {
      if (row >= end || chunk * 8u >= ${dim}u) { return vec4u(); }
      ${body[load]()}
    }`;
}

/** `halves(low, high)`: eight floats as halves, cut to their range. */
export const halvesFunction = `
    fn half4(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0)))); }
    fn halves(low: vec4f, high: vec4f) -> vec4u { return vec4u(half4(low), half4(high)); }`;

/** Copies `rows` rows into a workgroup array of halves with stride `stagedStride(dim)`. No barrier. */
export function stageRows(
  spec: MatrixSpec,
  target: { array: string; binding: string; dim: number; rows: number; base: string; first: string; end: string },
): string {
  const { array, binding, dim, rows, base, first, end } = target;
  const lanes = spec.subgroups * fragmentLanes;
  const chunks = padded(dim) / 8;
  return `
    for (var at = lane; at < ${bound(spec, rows * chunks)}; at += ${lanes}u) {
      let n = at / ${chunks}u;
      let chunk = at % ${chunks}u;
      let eight = eight_${binding}(${base}, ${first} + n, ${end}, chunk);
      let to = n * ${stagedStride(dim)}u + chunk * 8u;
      ${storeEight(spec, array)}
    }`;
}

function storeEight(spec: MatrixSpec, array: string): string {
  if (spec.opaque)
    return `for (var e = 0u; e < 8u * uniforms.one; e++) { ${array}[to + e] = f16(unpack2x16float(select(select(eight.x, eight.y, e >= 2u), select(eight.z, eight.w, e >= 6u), e >= 4u))[e & 1u]); }`;
  return range(4)
    .map(
      (w) =>
        `{ let pair = bitcast<vec2<f16>>(eight.${'xyzw'[w]}); ${array}[to + ${2 * w}u] = pair.x; ${array}[to + ${2 * w + 1}u] = pair.y; }`,
    )
    .join(' ');
}

/** A sum over the head dimension: unrolled on hardware; a loop under emulation, whose texts must stay short. `step` gets the first element. */
export function overDepth(f: Fragments, dim: number, opaque: boolean, step: (first: string, index: string) => string): string {
  const steps = padded(dim) / f.K;
  if (f.hardware)
    return range(steps)
      .map((k) => `{ ${step(`${k * f.K}u`, String(k))} }`)
      .join('\n');
  return `for (var depthStep = 0u; depthStep < ${steps}u${opaque ? ' * uniforms.one' : ''}; depthStep++) { ${step(`depthStep * ${f.K}u`, 'depthStep')} }`;
}

/** Accumulators `<name>0 ..` of an output of `dim` elements a row pass through the score region in bands of `columns` columns. */
export class OutputBands {
  readonly fragments: readonly number[];
  private readonly bands: readonly (readonly number[])[];

  constructor(
    private readonly f: Fragments,
    private readonly spec: MatrixSpec,
    private readonly name: string,
    private readonly dim: number,
  ) {
    this.fragments = range(padded(dim) / f.N);
    const { columns } = spec;
    this.bands = range(Math.ceil(padded(dim) / columns)).map((band) =>
      this.fragments.filter((j) => Math.floor((j * f.N) / columns) === band),
    );
  }

  /** Declares the accumulators, all zero. */
  declare(): string {
    return this.fragments.map((j) => this.f.zero(`${this.name}${j}`)).join(' ');
  }

  /** `accumulators += left x rows`: the weights of this subgroup's rows times staged rows, summed over the `columns` of a step. */
  accumulate(rowsArray: string): string {
    const { f, spec, name, dim } = this;
    const weightStride = spec.columns + rowPad;
    const stride = stagedStride(dim);
    return overDepth(
      f,
      spec.columns,
      spec.opaque,
      (first) => `
      ${f.loadLeft('weightPart', 'weights', `subgroupRow * ${weightStride}u + ${first}`, `${weightStride}u`)}
      ${this.fragments
        .map(
          (j) =>
            `{ ${f.loadRight('rowPart', rowsArray, `(${first}) * ${stride}u + ${j * f.N}u`, `${stride}u`)} ${f.multiplyAdd(`${name}${j}`, 'weightPart', 'rowPart')} }`,
        )
        .join('\n')}`,
    );
  }

  /** Each row times a factor: `eachRow(body)` must loop over the row's columns `kv` in memory, `scores[scoreRow + kv]`. */
  scaleRows(eachRow: (body: string) => string, factor: string): string {
    return this.bands
      .map(
        (band) => `
      workgroupBarrier();
      ${this.toMemory(band)}
      workgroupBarrier();
      ${eachRow(`scores[scoreRow + kv] *= ${factor};`)}
      workgroupBarrier();
      ${band.map((j) => this.f.loadResult(`${this.name}${j}`, 'scores', this.place(j), this.stride)).join('\n')}`,
      )
      .join('\n');
  }

  /** Stores rows n of the tile where `valid`: element d of a row lies at `at` + d of the binding; each is multiplied by `factor`. */
  store(binding: string, vector: boolean, texts: { valid: string; at: string; factor: string }): string {
    const { f, spec, dim } = this;
    return this.bands
      .map((band, i) => {
        const first = i * spec.columns;
        const items = (band.length * f.N) / (vector ? 4 : 1);
        const element = (e: number): string => `scores[n * ${this.stride} + c * ${vector ? 4 : 1}u + ${e}u] * (${texts.factor})`;
        const put = vector
          ? `if (${first}u + c * 4u < ${dim}u) { store_${binding}((${texts.at} + ${first}u) / 4u + c, vec4f(${range(4).map(element).join(', ')})); }`
          : `if (${first}u + c < ${dim}u) { store_${binding}(${texts.at} + ${first}u + c, ${element(0)}); }`;
        return `
        workgroupBarrier();
        ${this.toMemory(band)}
        workgroupBarrier();
        for (var at = lane; at < ${bound(spec, spec.rows * items)}; at += ${spec.subgroups * fragmentLanes}u) {
          let n = at / ${items}u;
          let c = at % ${items}u;
          if (${texts.valid}) { ${put} }
        }`;
      })
      .join('\n');
  }

  private get stride(): string {
    return `${this.spec.columns + scorePad}u`;
  }

  private place(j: number): string {
    return `subgroupRow * ${this.stride} + ${(j * this.f.N) % this.spec.columns}u`;
  }

  private toMemory(band: readonly number[]): string {
    return band.map((j) => this.f.store(`${this.name}${j}`, 'scores', this.place(j), this.stride)).join('\n');
  }
}

/** A loop's bound; hidden from software compilers, which would unroll. */
export function bound(spec: ScoreSpec, n: number): string {
  return spec.opaque ? `${n}u * uniforms.one` : `${n}u`;
}

/** `scores[row][column]` = rows of `left` times rows of `right`, for this subgroup's 16 rows and all columns of the step. */
export function scoreProduct(
  f: Fragments,
  spec: MatrixSpec,
  operands: { left: string; right: string; dim: number; held?: string },
): string {
  const { left, right, dim, held } = operands;
  const stride = stagedStride(dim);
  const fragments = range(spec.columns / f.N);
  const product = overDepth(
    f,
    dim,
    spec.opaque,
    (first, k) => `
    ${held ? '' : f.loadLeft('leftPart', left, `subgroupRow * ${stride}u + ${first}`, `${stride}u`)}
    ${fragments
      .map(
        (j) =>
          `{ ${f.loadRight('rightPart', right, `${j * f.N * stride}u + ${first}`, `${stride}u`, 'column')} ${f.multiplyAdd(`s${j}`, held ? `${held}${k}` : 'leftPart', 'rightPart')} }`,
      )
      .join('\n')}`,
  );
  const scoreStride = spec.columns + scorePad;
  return `{
    ${fragments.map((j) => f.zero(`s${j}`)).join(' ')}
    ${product}
    ${fragments.map((j) => f.store(`s${j}`, 'scores', `subgroupRow * ${scoreStride}u + ${j * f.N}u`, `${scoreStride}u`)).join('\n')}
  }`;
}

/** Names of a lane in the elementwise part: `subgroupRow`, `row` of its fragment, and the columns that it takes of its row. */
export function lanePlace(spec: MatrixSpec): string {
  return `
      let subgroupRow = subgroup * 16u;
      let row = subgroupLane % 16u;
      let part = subgroupLane / 16u;
      // the two lanes of a row take every other column, and rows 8 apart begin elsewhere: no bank conflicts
      let turn = part + 2u * (row / 8u);
      let scoreRow = (subgroupRow + row) * ${spec.columns + scorePad}u;
      let weightRow = (subgroupRow + row) * ${spec.columns + rowPad}u;`;
}

/** Column j of those that a lane takes. */
export function laneColumn(spec: MatrixSpec, j: number): string {
  return `((${2 * j}u + turn) % ${spec.columns}u)`;
}

/** `body` for each column `kv` that the lane takes, in a loop. */
export function overRow(spec: MatrixSpec, body: string): string {
  return `
    for (var j = 0u; j < ${bound(spec, spec.columns / 2)}; j++) {
      let kv = (2u * j + turn) % ${spec.columns}u;
      ${body}
    }`;
}
