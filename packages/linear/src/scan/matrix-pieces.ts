import { fragmentLanes, type Fragments, range } from '@heed/core/~internal';
import { FragmentLoops, type Index, plus, times, u32 } from './fragment-loops.js';
import { boundFromInitial, joinInitial } from './matrix-range.js';
import { type MatrixLayout, matrixLayout, type MatrixTile } from './matrix-tile.js';
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

  constructor(
    protected readonly s: MatrixSpec,
    protected readonly f: Fragments,
    layout: MatrixLayout = matrixLayout(s.keyDim, s, s.outputs),
  ) {
    this.layout = layout;
    this.lanes = s.rowGroups * s.columnGroups * fragmentLanes;
    this.own = s.columns / s.columnGroups / f.N;
    this.ownTokens = s.chunk / 16 / s.rowGroups;
    this.ownKeys = this.layout.keys / 16 / s.rowGroups;
    this.loops = new FragmentLoops(f, this.own);
  }

  /** First of this subgroup's columns, fragment c of them, in elements that hold `per` of them. */
  protected column(c: number, per: 1 | 4 | 8): string {
    return `(ownColumns / ${per}u + ${(c * this.f.N) / per}u)`;
  }

  /**
   * `body` for `size` neighbours of a rows x columns array, spread over the lanes. Unrolled on hardware: indices are then the
   * lane's plus constants, which a compiler can hold against the bounds.
   */
  protected eachItem(size: 4 | 8, rows: number, columns: number, body: (row: string, column: string) => string): string {
    const across = columns / size;
    if (!this.f.hardware || this.lanes % across !== 0)
      return `
            for (var e = lane; e < ${rows * across}u; e += ${this.lanes}u) {
              let itemRow = e / ${across}u;
              let itemColumn = e % ${across}u * ${size}u;
              ${body('itemRow', 'itemColumn')}
            }`;
    const step = this.lanes / across;
    return range(Math.ceil(rows / step))
      .map((i) => {
        const text = `let itemRow = lane / ${across}u + ${i * step}u; let itemColumn = lane % ${across}u * ${size}u;`;
        const guard = (i + 1) * step <= rows ? '' : `if (itemRow < ${rows}u) `;
        return `{ ${text} ${guard}{ ${body('itemRow', 'itemColumn')} } }`;
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
          `(rowGroup * ${perGroup}u + ${u32(r)}) * ${16 * this.layout.floatStride}u + ${this.column(c, 4)}`,
        ),
      ),
    );
  }

  protected storeSlice(slice: Index): string {
    return this.sliceFragments(slice, (accumulator, offset) => this.f.store(accumulator, 'stage', offset, `${this.layout.floatStride}u`));
  }

  /** `body` for four neighbours of a slice: `row` and `c` of the state, `place` in `stage`. */
  protected eachStaged(slice: Index, body: string): string {
    const across = this.s.columns / 4;
    return `
          for (var e = lane; e < ${this.sliceRows * across}u; e += ${this.lanes}u) {
            let staged = e / ${across}u;
            let row = ${this.stateRow(slice, 'staged / 16u')} + staged % 16u;
            let c = e % ${across}u * 4u;
            let place = staged * ${this.layout.floatStride}u + c / 4u;
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
            let value = vec4f(${[0, 1, 2, 3].map((i) => `initialAt(stateBase, row, columns + c + ${i}u)`).join(', ')}) / uniforms.stateScale;
            initialPeak = max(initialPeak, max(max(abs(value.x), abs(value.y)), max(abs(value.z), abs(value.w))));
            stage[place] = bitcast<vec4u>(value);`,
          )}
          workgroupBarrier();
          ${this.sliceFragments(slice, (accumulator, offset) => f.loadResult(accumulator, 'stage', offset, `${this.layout.floatStride}u`))}
          workgroupBarrier();`,
          )}
          ${s.outputs ? `${joinInitial('initialPeak')} workgroupBarrier(); ${boundFromInitial}` : ''}`;
  }

  /** What states are multiplied by as they leave. */
  protected get finalScale(): string {
    return 'uniforms.stateScale';
  }

  protected storeFinal(): string {
    const { s, f, loops } = this;
    if (this.layout.stage === 0)
      return loops.each(0, this.ownKeys, (r) =>
        loops.columnsOf(
          (c) =>
            `${f.scale(loops.at('s', r, c), this.finalScale)} ` +
            f.store(
              loops.at('s', r, c),
              'state',
              `uniforms.stateOffset + stateBase + (rowGroup * ${this.ownKeys}u + ${u32(r)}) * ${16 * s.valueDim}u + columns + ${this.column(c, 1)}`,
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
            let value = bitcast<vec4f>(stage[place]) * ${this.finalScale};
            for (var i = 0u; i < 4u; i++) {
              if (row < ${s.keyDim}u && columns + c + i < ${s.valueDim}u) { store_state(stateBase + row * ${s.valueDim}u + columns + c + i, value[i]); }
            }`,
          )}`,
    );
  }
}
