import { fragmentLanes, type Fragments, range } from '@heed/core/~internal';
import { FragmentLoops, type Index, plus, times, u32 } from './fragment-loops.js';
import { boundFromInitial, joinInitial } from './matrix-range.js';
import { floatPad, type MatrixLayout, matrixLayout, type MatrixTile } from './matrix-tile.js';
import type { HalfLoad } from './views.js';

/** What specialises the kernel on fragments. */
export interface MatrixSpec extends MatrixTile {
  [name: string]: string | number | boolean;
  outputs: boolean;
  keyDim: number;
  valueDim: number;
  loadQ: HalfLoad;
  loadK: HalfLoad;
  loadV: HalfLoad;
  outWidth: number;
  initial: boolean;
  final: boolean;
  lengths: boolean;
  /** The factor behind the decays applies to outputs. */
  gain: boolean;
}

/** How the kernel on fragments shares its work among subgroups, and how a state passes through workgroup memory. */
export class MatrixPieces {
  protected readonly layout: MatrixLayout;
  protected readonly lanes: number;
  protected readonly loops: FragmentLoops;
  /** Fragments of columns, of token rows and of state rows that one subgroup owns. */
  protected readonly own: number;
  protected readonly ownTokens: number;
  protected readonly ownKeys: number;
  protected readonly floatStride: number;

  constructor(
    protected readonly s: MatrixSpec,
    protected readonly f: Fragments,
  ) {
    this.layout = matrixLayout(s.keyDim, s, s.outputs);
    this.lanes = s.rowGroups * s.columnGroups * fragmentLanes;
    this.own = s.columns / s.columnGroups / f.N;
    this.ownTokens = s.chunk / 16 / s.rowGroups;
    this.ownKeys = this.layout.keys / 16 / s.rowGroups;
    this.floatStride = s.columns + floatPad;
    this.loops = new FragmentLoops(f, this.own);
  }

  /** First of this subgroup's columns, fragment c of them. */
  protected column(c: number): string {
    return `(ownColumns + ${c * this.f.N}u)`;
  }

  /**
   * `body` for four neighbours of a rows x columns array, spread over the lanes. Unrolled on hardware: indices are then the
   * lane's plus constants, which a compiler can hold against the bounds.
   */
  protected eachQuad(rows: number, columns: number, body: (row: string, column: string) => string): string {
    const across = columns / 4;
    if (!this.f.hardware || this.lanes % across !== 0)
      return `
            for (var e = lane; e < ${rows * across}u; e += ${this.lanes}u) {
              let quadRow = e / ${across}u;
              let quadColumn = e % ${across}u * 4u;
              ${body('quadRow', 'quadColumn')}
            }`;
    const step = this.lanes / across;
    return range(Math.ceil(rows / step))
      .map((i) => {
        const text = `let quadRow = lane / ${across}u + ${i * step}u; let quadColumn = lane % ${across}u * 4u;`;
        const guard = (i + 1) * step <= rows ? '' : `if (quadRow < ${rows}u) `;
        return `{ ${text} ${guard}{ ${body('quadRow', 'quadColumn')} } }`;
      })
      .join('\n');
  }

  /** Rows of the state that pass through `stage` at a time: some blocks of every row group. */
  protected get sliceRows(): number {
    return this.layout.keys / this.s.slices;
  }

  protected slices(body: (slice: Index) => string): string {
    return this.loops.each(0, this.s.slices, body);
  }

  /** Row of the state that block b of a slice begins with. */
  protected stateRow(slice: Index, b: Index): string {
    const perGroup = this.ownKeys / this.s.slices;
    return `(${u32(b)} / ${perGroup}u * ${this.ownKeys * 16}u + ${u32(times(slice, perGroup * 16))} + ${u32(b)} % ${perGroup}u * 16u)`;
  }

  /** This subgroup's fragments of a slice and where they lie in `stage`. */
  protected sliceFragments(slice: Index, move: (accumulator: string, offset: string) => string): string {
    const { loops } = this;
    const perGroup = this.ownKeys / this.s.slices;
    return loops.each(0, perGroup, (r) =>
      loops.columnsOf((c) =>
        move(
          loops.at('s', plus(times(slice, perGroup), r), c),
          `(rowGroup * ${perGroup}u + ${u32(r)}) * ${16 * this.floatStride}u + ${this.column(c)}`,
        ),
      ),
    );
  }

  protected storeSlice(slice: Index): string {
    return this.sliceFragments(slice, (accumulator, offset) => this.f.store(accumulator, 'stage', offset, `${this.floatStride}u`));
  }

  /** `body` for each element of a slice: `row` and `c` of the state, `place` in `stage`. */
  protected eachStaged(slice: Index, body: string): string {
    const { columns } = this.s;
    return `
          for (var e = lane; e < ${this.sliceRows * columns}u; e += ${this.lanes}u) {
            let staged = e / ${columns}u;
            let row = ${this.stateRow(slice, 'staged / 16u')} + staged % 16u;
            let c = e % ${columns}u;
            let place = staged * ${this.floatStride}u + c;
            ${body}
          }`;
  }

  protected loadInitial(): string {
    const { s, f } = this;
    return `
          var initialPeak = 0.0;
          ${this.slices(
            (slice) => `
          ${this.eachStaged(
            slice,
            `
            let value = initialAt(stateBase, row, columns + c) / uniforms.stateScale;
            initialPeak = max(initialPeak, abs(value));
            stage[place] = value;`,
          )}
          workgroupBarrier();
          ${this.sliceFragments(slice, (accumulator, offset) => f.loadResult(accumulator, 'stage', offset, `${this.floatStride}u`))}
          workgroupBarrier();`,
          )}
          ${s.outputs ? `${joinInitial(f, 'initialPeak')} workgroupBarrier(); ${boundFromInitial}` : ''}`;
  }

  protected storeFinal(): string {
    const { s, f, loops } = this;
    if (this.layout.stage === 0)
      return loops.each(0, this.ownKeys, (r) =>
        loops.columnsOf(
          (c) =>
            `${f.scale(loops.at('s', r, c), 'uniforms.stateScale')} ` +
            f.store(
              loops.at('s', r, c),
              'state',
              `uniforms.stateOffset + stateBase + (rowGroup * ${this.ownKeys}u + ${u32(r)}) * ${16 * s.valueDim}u + columns + ${this.column(c)}`,
              `${s.valueDim}u`,
            ),
        ),
      );
    return this.slices(
      (slice) => `
          workgroupBarrier();
          ${this.storeSlice(slice)}
          workgroupBarrier();
          ${this.eachStaged(
            slice,
            `
            if (row < ${s.keyDim}u && columns + c < ${s.valueDim}u) { store_state(stateBase + row * ${s.valueDim}u + columns + c, stage[place] * uniforms.stateScale); }`,
          )}`,
    );
  }
}
