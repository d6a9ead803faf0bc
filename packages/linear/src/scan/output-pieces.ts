import { type Fragments, range } from '@heed/core/~internal';
import { plus, times, u32 } from './fragment-loops.js';
import { MatrixPieces, type MatrixSpec } from './matrix-pieces.js';
import { boundFromInitial, joinInitial } from './matrix-range.js';
import { type OutputLayout, outputLayout } from './output-layout.js';

/** A part of workgroup memory, in elements of 16 bytes. */
export interface Place {
  array: 'left' | 'right' | 'stage';
  base: number;
}

// The state of a sweep with outputs. Each lane holds its share in f32 registers, eights of a row, slice by slice. What a chunk adds is
// summed in f16 fragments, over the tokens of that chunk alone, and passes through workgroup memory as halves; a lane joins its eights
// of it to the state and leaves the state in their place, as f16, which fragments load. That is 6 bytes an element where f32
// fragments took 10, and the step of one slice overlaps with those of its neighbours.
export class OutputPieces extends MatrixPieces {
  protected override readonly layout: OutputLayout;
  /** Eights of a slice that a lane holds. */
  private readonly eights: number;

  constructor(s: MatrixSpec, f: Fragments) {
    const layout = outputLayout(s.keyDim, s);
    super(s, f, layout);
    this.layout = layout;
    this.eights = Math.ceil((this.sliceRows * s.columns) / 8 / this.lanes);
  }

  /** Registers of the state, and what joins them to a chunk's addition: its decay, and the power of two that keeps it in f16. */
  protected declareState(): string {
    const registers = range(this.s.slices * this.eights).map((i) => `var state${i}a = vec4f(); var state${i}b = vec4f();`);
    return `
        ${registers.join(' ')}
        var wholeBefore = 1.0;
        var shrink = 1.0;
        var unshrink = 1.0;`;
  }

  /** Accumulators of what a chunk adds. */
  protected declareAdded(): string {
    const count = this.own * this.ownKeys;
    return this.f.hardware
      ? range(count)
          .map((i) => this.f.zeroHalf(`u_${i}`))
          .join('\n')
      : this.f.zeroHalf('u', count);
  }

  protected clearAdded(): string {
    return this.loops.each(0, this.ownKeys, (r) => this.loops.columnsOf((c) => this.f.clearHalf(this.loops.at('u', r, c))));
  }

  /**
   * The buffers that slices take in turn: halves of `stage`, and with more than two slices the place of the keys, so that a slice is
   * stored while the one before is joined and the one before that is multiplied.
   */
  protected place(slice: number): Place {
    if (this.s.slices > 2 && slice % 3 === 2) return { array: 'right', base: 0 };
    return { array: 'stage', base: (slice % 3) * this.layout.slice };
  }

  /** Stores what the last chunk added to a slice. */
  protected storeAdded(slice: number): string {
    const { loops, f } = this;
    const { valueStride } = this.layout;
    const perGroup = this.ownKeys / this.s.slices;
    const { array, base } = this.place(slice);
    return loops.each(0, perGroup, (r) =>
      loops.columnsOf((c) =>
        f.storeHalf(
          loops.at('u', plus(slice * perGroup, r), c),
          array,
          `${base}u + (rowGroup * ${perGroup}u + ${u32(r)}) * ${16 * valueStride}u + ${this.column(c, 8)}`,
          `${valueStride}u`,
        ),
      ),
    );
  }

  /** A slice of the state as it is before this chunk, left as f16 where what the last chunk added lay. */
  protected joinAdded(slice: number): string {
    const { array } = this.place(slice);
    return this.eachEight(
      slice,
      (state) => `
              ${this.joined(slice, state, 'unshrinkBefore')}
              ${array}[placed] = vec4u(fourOf(${state}a * down), fourOf(${state}b * down));`,
    );
  }

  /** out += Q S, a slice of it. */
  protected fromState(slice: number): string {
    const { f, loops, layout } = this;
    const { array, base } = this.place(slice);
    return loops.each(
      0,
      this.sliceRows / 16,
      (b) => `
              ${loops.columnsOf((c) => f.loadRight(`state${c}`, array, `${base}u + ${u32(times(b, 16 * layout.valueStride))} + ${this.column(c, 8)}`, `${layout.valueStride}u`))}
              ${loops.each(
                0,
                this.ownTokens,
                (r) => `
                ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.keyStride}u + ${this.stateRow(slice, b)} / 8u`, `${layout.keyStride}u`)}
                ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `state${c}`))}`,
              )}`,
    );
  }

  /** The state from f32 fragments `s`, of which each lane held none before, and the initial state times `wholeBefore`. */
  protected joinFragments(): string {
    return this.eachSlice(
      (slice) => `
          ${this.storeSlice(slice)}
          workgroupBarrier();
          ${this.eachEight(
            slice,
            (state) => `
            let staged = row * ${this.layout.floatStride}u + column / 4u;
            ${state}a = ${state}a * wholeBefore + bitcast<vec4f>(stage[staged]);
            ${state}b = ${state}b * wholeBefore + bitcast<vec4f>(stage[staged + 1u]);`,
          )}
          workgroupBarrier();`,
    );
  }

  protected override loadInitial(): string {
    const four = (first: number): string =>
      `vec4f(${range(4)
        .map((e) => `initialAt(stateBase, stateRow, columns + column + ${first + e}u)`)
        .join(', ')}) / uniforms.stateScale`;
    return `
          var initialPeak = 0.0;
          ${this.eachSlice((slice) =>
            this.eachEight(
              slice,
              (state) => `
            let stateRow = ${this.stateRow(slice, 'row / 16u')} + row % 16u;
            ${state}a = ${four(0)};
            ${state}b = ${four(4)};
            let most = max(abs(${state}a), abs(${state}b));
            initialPeak = max(initialPeak, max(max(most.x, most.y), max(most.z, most.w)));`,
            ),
          )}
          ${joinInitial('initialPeak')} workgroupBarrier(); ${boundFromInitial}`;
  }

  protected override storeFinal(): string {
    const { keyDim, valueDim } = this.s;
    return this.eachSlice(
      (slice) => `
          workgroupBarrier();
          ${this.storeAdded(slice)}
          workgroupBarrier();
          ${this.eachEight(
            slice,
            (state) => `
            let stateRow = ${this.stateRow(slice, 'row / 16u')} + row % 16u;
            ${this.joined(slice, state, 'unshrink')}
            for (var i = 0u; i < 8u; i++) {
              let value = select(${state}b[i % 4u], ${state}a[i % 4u], i < 4u) * uniforms.stateScale;
              if (stateRow < ${keyDim}u && columns + column + i < ${valueDim}u) { store_state(stateBase + stateRow * ${valueDim}u + columns + column + i, value); }
            }`,
          )}`,
    );
  }

  /** Joins what was added, at `placed`, to a lane's eight of the state. */
  private joined(slice: number, state: string, scale: string): string {
    const { array, base } = this.place(slice);
    return `
              let placed = ${base}u + row * ${this.layout.valueStride}u + column / 8u;
              let added = ${array}[placed];
              ${state}a = ${state}a * wholeBefore + vec4f(bitcast<vec4<f16>>(added.xy)) * ${scale};
              ${state}b = ${state}b * wholeBefore + vec4f(bitcast<vec4<f16>>(added.zw)) * ${scale};`;
  }

  private eachSlice(body: (slice: number) => string): string {
    return range(this.s.slices).map(body).join('\n');
  }

  /** `body` for each eight of a slice that this lane holds: registers `state`a and b, `row` of the slice, `column`. */
  private eachEight(slice: number, body: (state: string) => string): string {
    const across = this.s.columns / 8;
    const total = this.sliceRows * across;
    return range(this.eights)
      .map((i) => {
        const guard = (i + 1) * this.lanes <= total ? '' : `if (lane + ${i * this.lanes}u < ${total}u) `;
        return `${guard}{
              let row = (lane + ${i * this.lanes}u) / ${across}u;
              let column = (lane + ${i * this.lanes}u) % ${across}u * 8u;
              ${body(`state${slice * this.eights + i}`)} }`;
      })
      .join('\n');
  }
}
