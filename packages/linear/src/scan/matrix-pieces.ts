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

/** How the kernels on fragments share their work among subgroups, the products they have in common, and how a state passes through workgroup memory. */
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

  /** First token row of this subgroup's block r. */
  protected tokenRow(r: Index): string {
    return `((rowGroup * ${this.ownTokens}u + ${u32(r)}) * 16u)`;
  }

  protected eachTokenBlock(body: (t: Index) => string): string {
    return this.loops.each(0, this.s.chunk / 16, body);
  }

  protected loadValues(t: Index): string {
    const { valueStride } = this.layout;
    return this.loops.columnsOf((c) =>
      this.f.loadRight(`value${c}`, 'values', `${u32(times(t, 16 * valueStride))} + ${this.column(c, 8)}`, `${valueStride}u`),
    );
  }

  /** sum += K^T V for the values of a block of tokens, loaded before. */
  protected addKeys(t: Index, sum: 's' | 'u'): string {
    const { f, loops, layout } = this;
    return loops.each(
      0,
      this.ownKeys,
      (r) => `
              ${f.loadLeft('part', 'right', `${u32(times(t, 16 * layout.keyStride))} + (rowGroup * ${this.ownKeys}u + ${u32(r)}) * 2u`, `${layout.keyStride}u`, 'column')}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at(sum, r, c), 'part', `value${c}`))}`,
    );
  }

  /** s += K^T V for the tokens at hand. */
  protected addToState(): string {
    return this.eachTokenBlock((t) => `${this.loadValues(t)} ${this.addKeys(t, 's')}`);
  }

  /** Scores of 16 tokens: columns of fragments, groups of subgroups that share them. */
  protected get scoreGroups(): number {
    return Math.min(this.s.columnGroups, this.s.chunk / this.f.N);
  }

  /** Grid of a subgroup's scores. */
  protected get scoreLoops(): FragmentLoops {
    return new FragmentLoops(this.f, this.s.chunk / this.f.N / this.scoreGroups);
  }

  /**
   * Q K^T, left in fragments: this subgroup's token rows, its share of the key tokens. Where there are more column groups than
   * columns of fragments, some repeat another's.
   */
  protected scores(): string {
    const { s, f, layout, scoreLoops: loops } = this;
    return `
          let scoreGroup = subgroup % ${s.columnGroups}u;
          let ownScores = scoreGroup % ${this.scoreGroups}u * ${s.chunk / this.scoreGroups}u;
          ${loops.declare('p', this.ownTokens)}
          ${loops.each(
            0,
            layout.keys / 16,
            (b) => `
            ${loops.columnsOf((c) => f.loadRight(`key${c}`, 'right', `(ownScores + ${c * f.N}u) * ${layout.keyStride}u + ${u32(times(b, 2))}`, `${layout.keyStride}u`, 'column'))}
            ${loops.each(
              0,
              this.ownTokens,
              (r) => `
              ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.keyStride}u + ${u32(times(b, 2))}`, `${layout.keyStride}u`)}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at('p', r, c), 'part', `key${c}`))}`,
            )}`,
          )}`;
  }

  /** Outputs from their fragments to `stage`. */
  protected stageOutputs(): string {
    const { f, loops } = this;
    const { floatStride } = this.layout;
    return loops.each(0, this.ownTokens, (r) =>
      loops.columnsOf((c) =>
        f.store(loops.at('o', r, c), 'stage', `${this.tokenRow(r)} * ${floatStride}u + ${this.column(c, 4)}`, `${floatStride}u`),
      ),
    );
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
