// Workgroup memory of the attention kernels on fragments, and how a subgroup's lanes share a tile of it.
//
// On hardware a region is an array of 8- or 16-byte items: fragments load and store through such arrays as well, so that tiles are
// staged by one load and one store of eight halves, and a lane reads four scores and writes four weights at once. Under emulation
// (which reads single elements) regions are arrays of f16 and f32.
// Indices are made of the lane's number by + * / % and constants alone: Tint then proves their bounds and leaves out its clamps.
import { type Binding, read } from '../../kernel/bindings.js';
import { fragmentLanes, type Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { ScoreSpec } from './common.js';

/** Rows are loaded by eight halves, by four elements of either dtype, or one by one. */
export type RowLoad = 'half8' | 'vec4' | 'scalar';

/** The tile of a kernel on fragments. */
export type MatrixTileSpec = {
  subgroups: number;
  /** Blocks of 16 rows that a subgroup owns: each streamed fragment serves all of them. */
  blocks: number;
  /** Owned rows of the workgroup: 16 x blocks x subgroups. */
  rows: number;
  /** Streamed rows a step; a multiple of 16. */
  columns: number;
  /** Columns of scores at a time: a part of the streamed rows, a multiple of 16. All of them where lanes meet at barriers. */
  chunk: number;
  /** Columns of a result fragment. */
  fragmentColumns: number;
  /**
   * Lanes of a subgroup exchange scores and weights behind workgroup barriers. Without, they rely on a subgroup's loads and stores
   * taking effect in program order, which holds where the 32 lanes of a subgroup run as one (plan.ts says where).
   */
  barriers: boolean;
};

export type MatrixSpec = ScoreSpec &
  MatrixTileSpec & {
    load: RowLoad;
    /** The row of token i lies at `order[i]`, in all tensors of rows. */
    ordered: boolean;
  };

/** Where the row of a token lies. */
export function rowPlace({ ordered }: { ordered: boolean }, token: string): string {
  return ordered ? `load_order(${token})` : token;
}

/** The binding that `rowPlace` reads. */
export function orderBinding<S extends MatrixSpec>(): Binding<S> {
  return read<S>('u32', { when: ({ ordered }) => ordered });
}

/** Head dimension padded to whole fragments. */
export function padded(dim: number): number {
  return Math.ceil(dim / 16) * 16;
}

const kinds = {
  rows: { item: 'vec4u', per: 8, element: 'f16', bytes: 2 },
  weights: { item: 'vec2u', per: 4, element: 'f16', bytes: 2 },
  scores: { item: 'vec4f', per: 4, element: 'f32', bytes: 4 },
} as const;

/** Elements that pad a row: rows 8 apart then begin in other banks, for fragments and for the lanes' vectors alike. */
const pad = 8;

/** Bytes of a region. */
export function regionBytes(kind: keyof typeof kinds, rows: number, columns: number): number {
  return rows * (columns + pad) * kinds[kind].bytes;
}

/** A matrix in workgroup memory. */
export class Region {
  readonly stride: number;
  private readonly per: number;

  constructor(
    private readonly f: Fragments,
    readonly name: string,
    private readonly kind: keyof typeof kinds,
    private readonly rows: number,
    columns: number,
  ) {
    this.stride = columns + pad;
    this.per = f.hardware ? kinds[kind].per : 1;
  }

  declare(): string {
    const { item, element } = kinds[this.kind];
    return `var<workgroup> ${this.name}: array<${this.f.hardware ? item : element}, ${(this.rows * this.stride) / this.per}>;`;
  }

  /** Where an element lies, for fragments. */
  at(row: string, column: string): string {
    return `(${row}) * ${this.rowStride} + (${column}) / ${this.per}u`;
  }

  /** Stride of rows, for fragments. */
  get rowStride(): string {
    return `${this.stride / this.per}u`;
  }

  /** Four elements of a row of scores: `quad` counts fours of the row. */
  read(row: string, quad: string): string {
    if (this.f.hardware) return `${this.name}[(${row}) * ${this.stride / 4}u + ${quad}]`;
    const at = `(${row}) * ${this.stride}u + 4u * (${quad})`;
    return `vec4f(${range(4)
      .map((e) => `${this.name}[${at} + ${e}u]`)
      .join(', ')})`;
  }

  /** Writes four elements, f32 in `value`; weights are rounded to f16. */
  write(row: string, quad: string, value: string): string {
    const halves = this.kind === 'weights';
    if (this.f.hardware)
      return `${this.name}[(${row}) * ${this.stride / 4}u + ${quad}] = ${halves ? `bitcast<vec2u>(vec4<f16>(${value}))` : value};`;
    const put = range(4).map((e) => `${this.name}[quadAt + ${e}u] = ${halves ? `f16(four[${e}])` : `four[${e}]`};`);
    return `{ let quadAt = (${row}) * ${this.stride}u + 4u * (${quad}); let four = ${value}; ${put.join(' ')} }`;
  }

  /** Writes eight halves, a vec4u. */
  writeEight(row: string, chunk: string, value: string): string {
    if (this.f.hardware) return `${this.name}[(${row}) * ${this.stride / 8}u + ${chunk}] = ${value};`;
    const word = 'select(select(eight.x, eight.y, e >= 2u), select(eight.z, eight.w, e >= 6u), e >= 4u)';
    return `{ let eightAt = (${row}) * ${this.stride}u + 8u * (${chunk}); let eight = ${value};
      for (var e = 0u; e < 8u * uniforms.one; e++) { ${this.name}[eightAt + e] = f16(unpack2x16float(${word})[e & 1u]); } }`;
  }
}

/** A tile of streamed or owned rows on its way into a region: through registers on hardware, so that loads run ahead of the barrier. */
export class Staging {
  private readonly chunks: number;
  private readonly lanes: number;

  constructor(
    private readonly f: Fragments,
    private readonly region: Region,
    spec: MatrixTileSpec,
    private readonly source: { binding: string; base: string; dim: number; rows: number; firstChunk?: string; registers?: string },
  ) {
    this.chunks = padded(source.dim) / 8;
    this.lanes = spec.subgroups * fragmentLanes;
  }

  /** Declares the registers. */
  declare(): string {
    return this.f.hardware ? this.parts.map((r) => `var ${this.register(r)} = vec4u();`).join(' ') : '';
  }

  /** Loads rows `first` and following below `end`; zeros beyond. */
  fetch(first: string, end: string): string {
    if (!this.f.hardware) return '';
    return this.parts.map((r) => this.guarded(r, `${this.register(r)} = ${this.load(first, end, this.row(r), this.chunk(r))};`)).join('\n');
  }

  /** Writes what was fetched (under emulation: loads and writes). No barrier. */
  put(first: string, end: string): string {
    if (this.f.hardware)
      return this.parts.map((r) => this.guarded(r, this.region.writeEight(this.row(r), this.chunk(r), this.register(r)))).join('\n');
    return `for (var at = lane; at < ${this.source.rows * this.chunks}u * uniforms.one; at += ${this.lanes}u) {
      let n = at / ${this.chunks}u; let chunk = at % ${this.chunks}u;
      ${this.region.writeEight('n', 'chunk', this.load(first, end, 'n', 'chunk'))} }`;
  }

  private get parts(): number[] {
    return range(Math.ceil((this.source.rows * this.chunks) / this.lanes));
  }

  private load(first: string, end: string, row: string, chunk: string): string {
    const { binding, base, firstChunk } = this.source;
    return `eight_${binding}(${base}, ${first} + ${row}, ${end}, ${firstChunk ? `${firstChunk} + ` : ''}${chunk})`;
  }

  private guarded(r: number, text: string): string {
    const left = this.source.rows * this.chunks - r * this.lanes;
    return left < this.lanes ? `if (lane < ${left}u) { ${text} }` : text;
  }

  private register(r: number): string {
    return `${this.source.registers ?? `${this.region.name}Next`}${r}`;
  }

  private row(r: number): string {
    return `(lane + ${r * this.lanes}u) / ${this.chunks}u`;
  }

  private chunk(r: number): string {
    return `(lane + ${r * this.lanes}u) % ${this.chunks}u`;
  }
}

/** `eight_<binding>(base, row, end, chunk)`: halves 8 chunk .. 8 chunk + 7 of a row; zeros from row `end` on and beyond `dim`. */
export function eightLoader(binding: string, dim: number, spec: MatrixSpec): string {
  const row = `base + ${rowPlace(spec, 'row')} * uniforms.${binding}Row`;
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
      ${body[spec.load]()}
    }`;
}

/** `halves(low, high)`: eight floats as halves, cut to their range. */
export const halvesFunction = `
    fn half4(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0)))); }
    fn halves(low: vec4f, high: vec4f) -> vec4u { return vec4u(half4(low), half4(high)); }`;

/** A loop's bound; hidden from software compilers, which would unroll. */
export function bound(spec: ScoreSpec, n: number): string {
  return spec.opaque ? `${n}u * uniforms.one` : `${n}u`;
}

/**
 * Names of a lane: its row `row` within 16, and `pair`: of each eight columns it takes the first or the last four. Two lanes a row,
 * rows in order: neither scores nor weights meet bank conflicts.
 */
export const lanePlace = 'let row = subgroupLane / 2u; let pair = subgroupLane % 2u;';

/** Four columns that a lane takes of a row, number `unit`. */
export function laneQuad(unit: number | string): string {
  return typeof unit === 'number' ? `${2 * unit}u + pair` : `2u * ${unit} + pair`;
}

/** Binding of a tensor whose rows are staged. */
export function rowBinding<S extends MatrixSpec>(): Omit<Binding<S>, 'access' | 'type'> {
  return {
    width: (spec) => (spec.load === 'vec4' ? 4 : 1),
    raw: (spec) => (spec.load === 'half8' ? 'vec4u' : undefined),
  };
}
