import { Fragments, type KernelContext, range } from '@heed/core/~internal';
import { FragmentLoops, type Index, plus, times, u32 } from './fragment-loops.js';
import { eightsDeclared, HeldTile } from './held-tile.js';
import { MatrixPieces, type MatrixSpec } from './matrix-pieces.js';
import { matrixLayout } from './matrix-tile.js';
import { leadFrom, leadIn, only } from './matrix-lead.js';
import { chunkRange, joinChunk, peaksDeclared, rangeVariables } from './matrix-range.js';
import { TileTurns } from './tile-turns.js';
import type { TurnForm } from './turn-text.js';
import {
  aliveOf,
  equalSegments,
  initialOf,
  lengthOf,
  outStore,
  ownPart,
  partOf,
  rateOf,
  runOf,
  segmentOf,
  shareOf,
  tokenOf,
  zeroTail,
} from './text.js';

/** What specialises the kernel with one decay a head. */
export interface ChunkSpec extends MatrixSpec {
  /** Operands turned by position as they are loaded: queries and keys, or values (the roles of a backward). */
  turned: 'none' | 'keys' | 'values';
  turnForm: TurnForm;
  /** Workgroups sweep the runs of a table, each from the tokens before it that still count (see ranges.ts). */
  ranges: boolean;
}

/** The whole text; a generator of pieces that share sizes and names. */
export function matrixText(s: ChunkSpec, { capabilities }: KernelContext): string {
  const { stage } = matrixLayout(s.keyDim, s, s.outputs);
  const packed = [...(s.outputs ? ['left'] : []), 'right', 'values', ...(stage > 0 ? ['stage'] : [])];
  return new MatrixText(s, new Fragments(capabilities, { N: s.fragmentColumns as 8 | 16, packed })).kernel();
}

const step = 'at = nextAt; count = nextCount;';

/** Eight floats from `staged` on; every second four lanes read the upper half first, so that eight lanes meet all banks. */
const eightStaged = `
              let turned = lane / 4u % 2u;
              let one = bitcast<vec4f>(stage[staged + turned]);
              let two = bitcast<vec4f>(stage[staged + 1u - turned]);
              let lower = select(one, two, turned == 1u);
              let upper = select(two, one, turned == 1u);`;

// Workgroup memory, each part used several times a chunk:
//   left    Q, then Q scaled by its decay, then the masked scores
//   right   K, then slices of the state as f16, then K scaled by its decay
//   values  V
//   stage   f32: the state, then the scores, then the outputs on their way to f16
class MatrixText extends MatrixPieces {
  private readonly queries: HeldTile;
  private readonly keys: HeldTile;
  private readonly values: HeldTile;
  private readonly turns: TileTurns | undefined;
  private readonly ranges: boolean;

  constructor(s: ChunkSpec, f: Fragments) {
    super(s, f);
    this.ranges = s.ranges;
    const { layout } = this;
    const held = { rows: s.chunk, lanes: this.lanes };
    const keyRows = { dim: s.keyDim, width: layout.keys, stride: layout.keyStride, first: '0u' };
    const valueRows = { dim: s.valueDim, width: s.columns, stride: layout.valueStride, first: 'columns' };
    if (s.turned !== 'none') {
      const rows = s.turned === 'keys' ? keyRows : valueRows;
      this.turns = new TileTurns({ ...held, ...rows, form: s.turnForm, headDim: s.turnForm === 'concat' ? rows.dim / 2 : rows.dim });
    }
    const turns = s.turned === 'keys' ? this.turns : undefined;
    this.queries = new HeldTile({ ...held, ...keyRows, name: 'q', tile: 'left', load: s.loadQ, turns });
    this.keys = new HeldTile({ ...held, ...keyRows, name: 'k', tile: 'right', load: s.loadK, turns });
    this.values = new HeldTile({
      ...held,
      ...valueRows,
      name: 'v',
      tile: 'values',
      load: s.loadV,
      turns: s.turned === 'values' ? this.turns : undefined,
    });
  }

  protected override get finalScale(): string {
    return this.s.outputs ? super.finalScale : 'finalScale';
  }

  kernel(): string {
    const { s, f, loops, layout, ranges } = this;
    const tiles = s.outputs ? [this.queries, this.keys, this.values] : [this.keys, this.values];
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      ${s.outputs ? (ranges ? aliveOf : '') : aliveOf + shareOf}
      ${s.initial ? initialOf(s.keyDim, s.valueDim) : ''}
      ${s.outputs ? `var<workgroup> left: array<vec4u, ${layout.left}>;` : ''}
      var<workgroup> right: array<vec4u, ${layout.right}>;
      var<workgroup> values: array<vec4u, ${layout.values}>;
      ${layout.stage > 0 ? `var<workgroup> stage: array<vec4u, ${layout.stage}>;` : ''}
      ${eightsDeclared}
      ${this.turns?.functions() ?? ''}
      ${s.outputs ? `${peaksDeclared} ${outStore(s.outWidth, s.valueDim)}` : ''}
      ${f.entry(
        s.rowGroups * s.columnGroups,
        `
        let item = workgroupIndex(group, groups);
        if (item >= uniforms.workgroups) { return; }
        ${s.outputs ? 'let index = item;' : partOf}
        ${ranges ? runOf : equalSegments}
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let first = min(firstToken, length);
        ${s.outputs ? 'let' : 'var'} end = min(lastToken, length);
        let rowGroup = subgroup / ${s.columnGroups}u;
        let ownColumns = subgroup % ${s.columnGroups}u * ${s.columns / s.columnGroups}u;
        let rate = ${rateOf('head')};
        let stateBase = (${s.outputs ? '' : 'part * perPart / uniforms.columnTiles + '}(batch * uniforms.heads + head) * ${ranges ? '1u' : 'uniforms.segments'} + position.z) * ${s.keyDim * s.valueDim}u;
        ${loops.declare('s', this.ownKeys)}
        ${s.outputs ? rangeVariables : ''}
        ${ranges ? leadFrom(s.chunk, s.final) : 'var at = first;'}
        ${s.initial ? only(ranges, 'at == 0u', this.loadInitial()) : ''}
        ${s.outputs ? '' : ownPart}
        var count = min(${s.chunk}u, end - at);
        ${tiles.map((tile) => tile.declare()).join('\n')}
        ${this.turns?.begin() ?? ''}
        ${ranges ? this.lead() : tiles.map((tile) => tile.fetch()).join('\n')}
        ${s.outputs ? 'var done = 0u;' : ''}
        while (at < end) {
          ${this.chunkHead('held', tiles)}
          ${s.outputs ? this.outputChunk() : this.stateChunk()}
        }
        ${s.outputs ? this.wayOut() : ''}
        ${s.final ? only(ranges, 'lastToken >= uniforms.tokens', this.storeFinal()) : ''}
        ${s.outputs && s.lengths ? zeroTail(s.columns, this.lanes, s.outWidth === 8, 'lastToken') : ''}`,
        { lanesInOrder: true },
      )}`;
  }

  /** The chunk behind this one, which registers get while this one is worked on: loads from memory take as long as some phases. */
  private ahead(fetches: (at: string, count: string) => string[]): string {
    return `
          let nextAt = at + held;
          let nextCount = min(${this.s.chunk}u, end - nextAt);
          ${fetches('nextAt', 'nextCount').join('\n')}
          ${this.turns?.onward('nextAt') ?? ''}`;
  }

  private chunkHead(registers: 'held' | 'next', tiles: readonly HeldTile[]): string {
    return `
          let held = count;
          ${this.turns?.factors() ?? ''}
          ${tiles.map((tile) => tile.turn(registers)).join(' ')}
          let whole = exp2(rate * f32(held));`;
  }

  /** The state before the first token of a run; keys and values of the first chunk of it are on their way then. */
  private lead(): string {
    const { keys, values, turns } = this;
    const text = leadIn({
      keys,
      values,
      chunk: this.s.chunk,
      head: (registers) => this.chunkHead(registers, [keys, values]),
      keyFactor: this.keyFactor(),
      onward: turns?.onward('at + held') ?? '',
      update: () => this.updateState(),
    });
    return `${text} ${this.queries.fetch()}`;
  }

  private stateChunk(): string {
    const { keys, values } = this;
    return `
          ${keys.put(this.keyFactor())}
          ${values.put()}
          workgroupBarrier();
          ${this.ahead((at, count) => [keys.fetch(at, count), values.fetch(at, count)])}
          ${this.updateState()}
          ${step}
          workgroupBarrier();`;
  }

  private outputChunk(): string {
    const { loops, queries, keys, values } = this;
    const queryFactor = 'exp2(rate * f32(r + 1u - uniforms.reverse))';
    const peak = (tile: HeldTile) => (name: string) => tile.peak(name);
    return `
          ${this.wayOut()}
          ${queries.put()}
          ${keys.put()}
          ${values.put()}
          ${joinChunk({ q: peak(queries), k: peak(keys), v: peak(values) })}
          workgroupBarrier();
          ${queries.declare('next')} ${keys.declare('next')}
          ${this.ahead((at, count) => [queries.fetch(at, count, 'next'), keys.fetch(at, count, 'next'), values.fetch(at, count)])}
          ${chunkRange(this.s.keyDim, this.s.gain)}
          outFactor = up;
          ${this.scores()}
          ${this.storeSlice(0)}
          workgroupBarrier();
          ${queries.put(queryFactor)}
          ${loops.declare('o', this.ownTokens)}
          ${this.fromState()}
          ${this.mask()}
          ${keys.put(this.keyFactor())}
          done = held;
          ${queries.take()} ${keys.take()}
          ${step}
          workgroupBarrier();
          ${this.updateState((t) => this.fromScores(t))}
          ${loops.each(0, this.ownTokens, (r) =>
            loops.columnsOf((c) =>
              this.f.store(
                loops.at('o', r, c),
                'stage',
                `${this.tokenRow(r)} * ${this.layout.floatStride}u + ${this.column(c, 4)}`,
                `${this.layout.floatStride}u`,
              ),
            ),
          )}
          workgroupBarrier();`;
  }

  /** Decay of a key until the end of its chunk; rows behind the last are zeros and take any finite factor. */
  private keyFactor(): string {
    return 'exp2(rate * f32(max(i32(held + uniforms.reverse) - 1 - i32(r), 0))) * uniforms.keyScale';
  }

  /** First token row of this subgroup's block r. */
  private tokenRow(r: Index): string {
    return `((rowGroup * ${this.ownTokens}u + ${u32(r)}) * 16u)`;
  }

  private eachTokenBlock(body: (t: Index) => string): string {
    return this.loops.each(0, this.s.chunk / 16, body);
  }

  private loadValues(t: Index): string {
    const { valueStride } = this.layout;
    return this.loops.columnsOf((c) =>
      this.f.loadRight(`value${c}`, 'values', `${u32(times(t, 16 * valueStride))} + ${this.column(c, 8)}`, `${valueStride}u`),
    );
  }

  /** out += P V, for the values of a block of tokens, loaded before. */
  private fromScores(t: Index): string {
    const { f, loops, layout } = this;
    return loops.each(
      0,
      this.ownTokens,
      (r) => `
              ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.scoreStride}u + ${u32(times(t, 2))}`, `${layout.scoreStride}u`)}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `value${c}`))}`,
    );
  }

  /** S <- lambda^C S + K^T V; `also` is what else the values of a block of tokens are for. */
  private updateState(also: (t: Index) => string = () => ''): string {
    const { f, loops, layout } = this;
    return `
          ${loops.each(0, this.ownKeys, (r) => loops.columnsOf((c) => f.scale(loops.at('s', r, c), 'whole')))}
          ${this.eachTokenBlock(
            (t) => `
            ${this.loadValues(t)}
            ${also(t)}
            ${loops.each(
              0,
              this.ownKeys,
              (r) => `
              ${f.loadLeft('part', 'right', `${u32(times(t, 16 * layout.keyStride))} + (rowGroup * ${this.ownKeys}u + ${u32(r)}) * 2u`, `${layout.keyStride}u`, 'column')}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at('s', r, c), 'part', `value${c}`))}`,
            )}`,
          )}`;
  }

  /** Scores of 16 tokens: columns of fragments, groups of subgroups that share them. */
  private get scoreGroups(): number {
    return Math.min(this.s.columnGroups, this.s.chunk / this.f.N);
  }

  /**
   * Q K^T, left in fragments: this subgroup's token rows, its share of the key tokens. Where there are more column groups than
   * columns of fragments, some repeat another's, and put it aside.
   */
  private scores(): string {
    const { s, f, layout } = this;
    const loops = new FragmentLoops(f, s.chunk / f.N / this.scoreGroups);
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

  /** out = Q S, the state slice by slice through `stage` (the first is there) and `right`; then the scores to `stage`. */
  private fromState(): string {
    const { s, f, loops, layout } = this;
    const scores = new FragmentLoops(f, s.chunk / f.N / this.scoreGroups);
    const scoreFloats = layout.scoreFloatStride;
    const place = (r: Index, c: number): string => {
      const own = `${this.tokenRow(r)} * ${scoreFloats}u + ownScores / 4u + ${(c * f.N) / 4}u`;
      return this.scoreGroups === s.columnGroups ? own : `select(${s.chunk * scoreFloats}u, ${own}, scoreGroup < ${this.scoreGroups}u)`;
    };
    const storeScores = scores.each(0, this.ownTokens, (r) =>
      scores.columnsOf((c) => f.store(scores.at('p', r, c), 'stage', place(r, c), `${scoreFloats}u`)),
    );
    const storeNext = (slice: Index): string => {
      if (typeof slice === 'number') return slice + 1 < s.slices ? this.storeSlice(slice + 1) : storeScores;
      return `if (${slice} + 1u < ${s.slices}u) { ${this.storeSlice(plus(slice, 1))} } else { ${storeScores} }`;
    };
    return this.slices(
      (slice) => `
            ${this.eachItem(
              8,
              this.sliceRows,
              s.columns,
              (row, c) => `
              let staged = ${row} * ${layout.floatStride}u + ${c} / 4u;
              ${eightStaged}
              right[${row} * ${layout.valueStride}u + ${c} / 8u] = vec4u(fourOf(lower * down), fourOf(upper * down));`,
            )}
            workgroupBarrier();
            ${loops.each(
              0,
              this.sliceRows / 16,
              (b) => `
              ${loops.columnsOf((c) => f.loadRight(`state${c}`, 'right', `${u32(times(b, 16 * layout.valueStride))} + ${this.column(c, 8)}`, `${layout.valueStride}u`))}
              ${loops.each(
                0,
                this.ownTokens,
                (r) => `
                ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.keyStride}u + ${this.stateRow(slice, b)} / 8u`, `${layout.keyStride}u`)}
                ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `state${c}`))}`,
              )}`,
            )}
            ${storeNext(slice)}
            workgroupBarrier();`,
    );
  }

  private mask(): string {
    const { chunk } = this.s;
    const { scoreStride, scoreFloatStride } = this.layout;
    // j + n behind i is in the future; the clamp keeps what is thrown away finite
    const four = (n: number): string => {
      const decay = range(4).map((e) => `exp2(rate * f32(max(i32(i - j) - ${n + e}, 0)))`);
      const past = range(4).map((e) => `j + ${n + e}u <= i`);
      return `fourOf(select(vec4f(), ${n === 0 ? 'lower' : 'upper'} * vec4f(${decay.join(', ')}) * scale, vec4<bool>(${past.join(', ')})))`;
    };
    return `
          let scale = uniforms.keyScale * down;
          ${this.eachItem(
            8,
            chunk,
            chunk,
            (row, column) => `
              let i = ${row};
              let j = ${column};
              let placed = i * ${scoreStride}u + j / 8u;
              let staged = i * ${scoreFloatStride}u + j / 4u;
              if (j <= i) { ${eightStaged} left[placed] = vec4u(${four(0)}, ${four(4)}); } else { left[placed] = vec4u(); }`,
          )}`;
  }

  /** Outputs of the `done` tokens before `at`, which wait in `stage`. */
  private wayOut(): string {
    const { chunk, columns, outWidth } = this.s;
    const size = outWidth === 8 ? 8 : 4;
    return this.eachItem(
      size,
      chunk,
      columns,
      (r, c) => `
              if (${r} < done) {
                let base = batch * uniforms.outBatch + tokenAt(at - done + ${r}, length) * uniforms.outToken + head * uniforms.outHead;
                let staged = ${r} * ${this.layout.floatStride}u + ${c} / 4u;
                ${size === 8 ? `${eightStaged} eightTo_out(base, columns + ${c}, lower * outFactor, upper * outFactor);` : `vectorTo_out(base, columns + ${c}, bitcast<vec4f>(stage[staged]) * outFactor);`}
              }`,
    );
  }
}
