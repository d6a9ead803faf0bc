import { fragmentLanes, Fragments, type KernelContext } from '@heed/core/~internal';
import { FragmentLoops, type Index, plus, times, u32 } from './fragment-loops.js';
import { floatPad, halfPad, matrixSubgroups, paddedKeys, stageFloats } from './matrix-tile.js';
import { aliveFrom, type HalfTile, halfTile, initialOf, lengthOf, rateOf, segmentOf, tokenOf, vectorStore, zeroTail } from './text.js';
import type { HalfLoad } from './views.js';

/** What specialises the kernel on fragments. */
export interface MatrixSpec {
  [name: string]: string | number | boolean;
  outputs: boolean;
  keyDim: number;
  valueDim: number;
  chunk: number;
  columns: number;
  stage: number;
  loadQ: HalfLoad;
  loadK: HalfLoad;
  loadV: HalfLoad;
  outWidth: number;
  initial: boolean;
  final: boolean;
  lengths: boolean;
}

export const halfRaw: Record<HalfLoad, string> = { half8: 'vec4u', half4: 'vec4<f16>', half: 'f16' };

const lanes = matrixSubgroups * fragmentLanes;

/** The whole text; a generator of pieces that share sizes and names. */
export function matrixText(s: MatrixSpec, { capabilities }: KernelContext): string {
  return new MatrixText(s, new Fragments(capabilities)).kernel();
}

class MatrixText {
  private readonly keys: number;
  private readonly keyStride: number;
  private readonly valueStride: number;
  private readonly scoreStride: number;
  /** Floats from row to row of `stage` where it holds states and outputs. */
  private readonly floatStride: number;
  private readonly own: number;
  private readonly loops: FragmentLoops;

  constructor(
    private readonly s: MatrixSpec,
    private readonly f: Fragments,
  ) {
    this.keys = paddedKeys(s.keyDim);
    this.keyStride = this.keys + halfPad;
    this.valueStride = s.columns + halfPad;
    this.scoreStride = s.chunk + halfPad;
    this.floatStride = s.columns + floatPad;
    this.own = s.columns / matrixSubgroups / f.N;
    this.loops = new FragmentLoops(f, this.own);
  }

  kernel(): string {
    const { s, f, loops } = this;
    const floats = s.outputs ? stageFloats(s.chunk, s.columns, s.stage) : s.stage * this.floatStride;
    const halves = (name: string, count: number): string => `var<workgroup> ${name}: array<f16, ${count}>;`;
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      ${s.initial ? initialOf(s.keyDim, s.valueDim) : ''}
      ${halves('keys', s.chunk * this.keyStride)}
      ${halves('values', s.chunk * this.valueStride)}
      ${s.outputs ? halves('queries', s.chunk * this.keyStride) : ''}
      ${s.outputs ? halves('scores', s.chunk * this.scoreStride) : ''}
      ${s.outputs ? halves('states', this.keys * this.valueStride) : ''}
      var<workgroup> stage: array<f32, ${floats}>;
      var<workgroup> powers: array<f32, ${s.chunk + 4}>;
      ${s.outputs ? vectorStore('out', s.outWidth, s.valueDim) : ''}
      ${f.entry(
        matrixSubgroups,
        `
        let index = workgroupIndex(group, groups);
        if (index >= uniforms.workgroups) { return; }
        let position = segmentOf(index);
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let firstToken = position.z * uniforms.segmentTokens;
        let first = min(firstToken, length);
        let end = min(first + uniforms.segmentTokens, length);
        let ownColumns = subgroup * ${s.columns / matrixSubgroups}u;
        let rate = ${rateOf('head')};
        let stateBase = ((batch * uniforms.heads + head) * uniforms.segments + position.z) * ${s.keyDim * s.valueDim}u;
        for (var r = lane; r <= ${s.chunk}u; r += ${lanes}u) { powers[r] = exp2(rate * f32(r)); }
        ${loops.declare('s', this.keys / 16)}
        ${s.initial ? this.loadInitial() : ''}
        var at = first;
        ${s.outputs ? '' : aliveFrom}
        workgroupBarrier();
        while (at < end) {
          let count = min(${s.chunk}u, end - at);
          // not from workgroup memory: a scale of fragments must be uniform
          let whole = exp2(rate * f32(count));
          ${s.outputs ? this.outputChunk() : this.stateChunk()}
          at += count;
        }
        ${s.final ? this.storeFinal() : ''}
        ${s.outputs && s.lengths ? zeroTail(s.columns, lanes) : ''}`,
      )}`;
  }

  private stateChunk(): string {
    return `
          ${this.loadKeys()}
          ${this.loadValues()}
          workgroupBarrier();
          ${this.scaleKeys()}
          workgroupBarrier();
          ${this.scaleState()}
          ${this.products()}
          workgroupBarrier();`;
  }

  private outputChunk(): string {
    const { s, loops } = this;
    return `
          ${this.load({ name: 'q', tile: 'queries', load: s.loadQ, dim: s.keyDim, width: this.keys, stride: this.keyStride, first: '0u' })}
          ${this.loadKeys()}
          ${this.loadValues()}
          ${this.operandState()}
          ${this.scores()}
          ${this.scaleRows('queries', 'r + 1u - uniforms.reverse', 'queryScale')}
          ${this.scaleKeys()}
          workgroupBarrier();
          ${loops.declare('o', s.chunk / 16)}
          ${this.scaleState()}
          ${this.products()}
          ${this.fromState()}
          ${this.wayOut()}`;
  }

  private load(tile: Omit<HalfTile, 'rows' | 'lanes'>): string {
    return halfTile({ ...tile, rows: this.s.chunk, lanes });
  }

  private loadKeys(): string {
    const { s } = this;
    return this.load({ name: 'k', tile: 'keys', load: s.loadK, dim: s.keyDim, width: this.keys, stride: this.keyStride, first: '0u' });
  }

  private loadValues(): string {
    const { s } = this;
    return this.load({
      name: 'v',
      tile: 'values',
      load: s.loadV,
      dim: s.valueDim,
      width: s.columns,
      stride: this.valueStride,
      first: 'columns',
    });
  }

  private scaleKeys(): string {
    return this.scaleRows('keys', 'count + uniforms.reverse - 1u - r', 'keyScale');
  }

  // Rows behind the last are zeros, whatever their clamped power.
  private scaleRows(name: string, power: string, factor: string): string {
    const { chunk } = this.s;
    return `
          for (var e = lane; e < ${chunk * this.keys}u; e += ${lanes}u) {
            let r = e / ${this.keys}u;
            let place = r * ${this.keyStride}u + e % ${this.keys}u;
            ${name}[place] = f16(f32(${name}[place]) * powers[min(${power}, ${chunk}u)] * uniforms.${factor});
          }`;
  }

  private scaleState(): string {
    const { f, loops } = this;
    return loops.each(0, this.keys / 16, (r) => loops.columnsOf((c) => f.scale(loops.at('s', r, c), 'whole')));
  }

  /** First of this subgroup's columns, fragment c of them. */
  private column(c: number): string {
    return `ownColumns + ${c * this.f.N}u`;
  }

  /** S += K^T V and out += scores V, the blocks up to the diagonal: a fragment of V serves both. */
  private products(): string {
    const { s, f, loops } = this;
    const tokenBlocks = s.chunk / 16;
    const multiply = (grid: string, row: Index): string =>
      loops.columnsOf((c) => f.multiplyAdd(loops.at(grid, row, c), 'left', `right${c}`));
    return loops.each(
      0,
      tokenBlocks,
      (t) => `
          ${loops.columnsOf((c) => f.loadRight(`right${c}`, 'values', `${u32(times(t, 16 * this.valueStride))} + ${this.column(c)}`, `${this.valueStride}u`))}
          ${
            s.outputs
              ? loops.each(
                  t,
                  tokenBlocks,
                  (r) => `
            ${f.loadLeft('left', 'scores', u32(plus(times(r, 16 * this.scoreStride), times(t, 16))), `${this.scoreStride}u`)}
            ${multiply('o', r)}`,
                )
              : ''
          }
          ${loops.each(
            0,
            this.keys / 16,
            (r) => `
            ${f.loadLeft('left', 'keys', u32(plus(times(t, 16 * this.keyStride), times(r, 16))), `${this.keyStride}u`, 'column')}
            ${multiply('s', r)}`,
          )}`,
    );
  }

  /** out += Q S. */
  private fromState(): string {
    const { s, f, loops } = this;
    return loops.each(
      0,
      this.keys / 16,
      (b) => `
          ${loops.columnsOf((c) => f.loadRight(`right${c}`, 'states', `${u32(times(b, 16 * this.valueStride))} + ${this.column(c)}`, `${this.valueStride}u`))}
          ${loops.each(
            0,
            s.chunk / 16,
            (r) => `
            ${f.loadLeft('left', 'queries', u32(plus(times(r, 16 * this.keyStride), times(b, 16))), `${this.keyStride}u`)}
            ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'left', `right${c}`))}`,
          )}`,
    );
  }

  /** `body` for slices of at most `stage` rows of the state: first row, their number. */
  private slices(body: (first: Index, rows: Index) => string): string {
    const { stage } = this.s;
    return this.loops.each(0, Math.ceil(this.keys / stage), (i) => {
      const first = times(i, stage);
      return body(first, typeof first === 'number' ? Math.min(stage, this.keys - first) : `min(${stage}u, ${this.keys}u - ${u32(first)})`);
    });
  }

  /** Fragments of a slice to or from `stage`. */
  private sliceFragments(first: Index, rows: Index, move: (accumulator: string, offset: string) => string): string {
    const { loops } = this;
    const blocks = (n: Index): Index => (typeof n === 'number' ? n / 16 : `${u32(n)} / 16u`);
    return loops.each(0, blocks(rows), (r) =>
      loops.columnsOf((c) => move(loops.at('s', plus(blocks(first), r), c), `${u32(times(r, 16 * this.floatStride))} + ${this.column(c)}`)),
    );
  }

  private storeSlice(first: Index, rows: Index): string {
    return this.sliceFragments(first, rows, (accumulator, offset) => this.f.store(accumulator, 'stage', offset, `${this.floatStride}u`));
  }

  /** `body` for each element of a slice: `row` and `c` of the state, `place` in `stage`. */
  private eachStaged(first: Index, rows: Index, body: string): string {
    const { columns } = this.s;
    return `
          for (var e = lane; e < ${u32(times(rows, columns))}; e += ${lanes}u) {
            let row = e / ${columns}u + ${u32(first)};
            let c = e % ${columns}u;
            let place = e / ${columns}u * ${this.floatStride}u + c;
            ${body}
          }`;
  }

  private loadInitial(): string {
    return this.slices(
      (first, rows) => `
          ${this.eachStaged(first, rows, 'stage[place] = initialAt(stateBase, row, columns + c);')}
          workgroupBarrier();
          ${this.sliceFragments(first, rows, (accumulator, offset) => this.f.loadResult(accumulator, 'stage', offset, `${this.floatStride}u`))}
          workgroupBarrier();`,
    );
  }

  private storeFinal(): string {
    const { s } = this;
    return this.slices(
      (first, rows) => `
          workgroupBarrier();
          ${this.storeSlice(first, rows)}
          workgroupBarrier();
          ${this.eachStaged(
            first,
            rows,
            `
            if (row < ${s.keyDim}u && columns + c < ${s.valueDim}u) { store_state(stateBase + row * ${s.valueDim}u + columns + c, stage[place]); }`,
          )}`,
    );
  }

  /** The state as an f16 operand. */
  private operandState(): string {
    return this.slices(
      (first, rows) => `
          ${this.storeSlice(first, rows)}
          workgroupBarrier();
          ${this.eachStaged(first, rows, `states[row * ${this.valueStride}u + c] = f16(stage[place]);`)}
          workgroupBarrier();`,
    );
  }

  /**
   * Q K^T through `stage`, masked and decayed on its way to f16. A chunk of few fragments leaves subgroups idle: they repeat
   * another's and store it beside.
   */
  private scores(): string {
    const { s, f, loops, keyStride } = this;
    const across = s.chunk / f.N;
    const fragments = (s.chunk / 16) * across;
    const stride = s.chunk + floatPad;
    return `
          ${loops.each(
            0,
            Math.ceil(fragments / matrixSubgroups),
            (i) => `
            let fragment = subgroup + ${u32(times(i, matrixSubgroups))};
            let fragmentRow = fragment % ${fragments}u / ${across}u * 16u;
            let fragmentColumn = fragment % ${across}u * ${f.N}u;
            ${f.zero('score')}
            ${loops.each(
              0,
              this.keys / 16,
              (b) => `
              ${f.loadLeft('left', 'queries', `fragmentRow * ${keyStride}u + ${u32(times(b, 16))}`, `${keyStride}u`)}
              ${f.loadRight('right', 'keys', `fragmentColumn * ${keyStride}u + ${u32(times(b, 16))}`, `${keyStride}u`, 'column')}
              ${f.multiplyAdd('score', 'left', 'right')}`,
            )}
            ${f.store('score', 'stage', `select(${s.chunk * stride}u, fragmentRow * ${stride}u + fragmentColumn, fragment < ${fragments}u)`, `${stride}u`)}`,
          )}
          workgroupBarrier();
          for (var e = lane; e < ${s.chunk * s.chunk}u; e += ${lanes}u) {
            let i = e / ${s.chunk}u;
            let j = e % ${s.chunk}u;
            var value = 0.0;
            if (j <= i) { value = stage[i * ${stride}u + j] * powers[i - j] * uniforms.queryScale * uniforms.keyScale; }
            scores[i * ${this.scoreStride}u + j] = f16(value);
          }`;
  }

  /** Outputs through `stage`, as many rows at a time as fit. */
  private wayOut(): string {
    const { s, f, loops, floatStride: stride } = this;
    const rows = Math.min(s.chunk, Math.floor(stageFloats(s.chunk, s.columns, s.stage) / stride / 16) * 16);
    const groups = s.columns / 4;
    return loops.each(
      0,
      s.chunk / rows,
      (i) => `
          ${loops.each(0, rows / 16, (r) =>
            loops.columnsOf((c) =>
              f.store(
                loops.at('o', plus(times(i, rows / 16), r), c),
                'stage',
                `${u32(times(r, 16 * stride))} + ${this.column(c)}`,
                `${stride}u`,
              ),
            ),
          )}
          workgroupBarrier();
          for (var e = lane; e < ${rows * groups}u; e += ${lanes}u) {
            let token = at + ${u32(times(i, rows))} + e / ${groups}u;
            let c = e % ${groups}u * 4u;
            let place = e / ${groups}u * ${stride}u + c;
            if (token < end) {
              let base = batch * uniforms.outBatch + tokenAt(token, length) * uniforms.outToken + head * uniforms.outHead;
              vectorTo_out(base, columns + c, vec4f(stage[place], stage[place + 1u], stage[place + 2u], stage[place + 3u]));
            }
          }
          workgroupBarrier();`,
    );
  }
}
