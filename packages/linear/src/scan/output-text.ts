import { Fragments, type KernelContext, range } from '@heed/core/~internal';
import { times, u32 } from './fragment-loops.js';
import { type ChunkTiles, chunkTiles } from './chunk-tiles.js';
import { eightsDeclared, type HeldTile } from './held-tile.js';
import { addedRange, chunkRange, joinChunk, joinLead, leadRange, peaksDeclared, rangeVariables } from './matrix-range.js';
import type { ChunkSpec } from './matrix-text.js';
import { OutputPieces, type Place } from './output-pieces.js';
import {
  aliveOf,
  equalSegments,
  initialOf,
  lengthOf,
  outStore,
  leadFrom,
  only,
  rateOf,
  runOf,
  segmentOf,
  tokenOf,
  zeroTail,
} from './text.js';

/** The whole text of the sweep with outputs. */
export function outputText(s: ChunkSpec, { capabilities }: KernelContext): string {
  return new OutputText(
    s,
    new Fragments(capabilities, { N: s.fragmentColumns as 8 | 16, packed: ['left', 'right', 'values', 'stage'] }),
  ).kernel();
}

/** Eight floats from `staged` on; every second four lanes read the upper half first, so that eight lanes meet all banks. */
const eightStaged = `
              let turned = lane / 4u % 2u;
              let one = bitcast<vec4f>(stage[staged + turned]);
              let two = bitcast<vec4f>(stage[staged + 1u - turned]);
              let lower = select(one, two, turned == 1u);
              let upper = select(two, one, turned == 1u);`;

/** Text of each tile's largest magnitude. */
function peaks<Name extends string>(tiles: Record<Name, HeldTile>): Record<Name, (name: string) => string> {
  const entries = Object.entries<HeldTile>(tiles).map(([key, tile]) => [key, (name: string) => tile.peak(name)]);
  return Object.fromEntries(entries) as Record<Name, (name: string) => string>;
}

// Workgroup memory, each part used several times a chunk:
//   left    Q, then Q scaled by its decay, then (or in `stage`) the masked scores
//   right   K, then a slice of the state, then K scaled by its decay
//   values  V
//   stage   slices of what the last chunk added and of the state, as f16; scores, f32; outputs on their way to f16, f32
class OutputText extends OutputPieces {
  private readonly tiles: ChunkTiles;
  private readonly ranges: boolean;

  constructor(s: ChunkSpec, f: Fragments) {
    super(s, f);
    this.ranges = s.ranges;
    this.tiles = chunkTiles(s, this.layout, this.lanes);
  }

  kernel(): string {
    const { s, f, layout, ranges } = this;
    const { queries, keys, values, turns } = this.tiles;
    const tiles = [queries, keys, values];
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      ${ranges ? aliveOf : ''}
      ${s.initial ? initialOf(s.keyDim, s.valueDim) : ''}
      ${(['left', 'right', 'values', 'stage'] as const).map((name) => `var<workgroup> ${name}: array<vec4u, ${layout[name]}>;`).join('\n')}
      ${eightsDeclared}
      ${turns?.functions() ?? ''}
      ${peaksDeclared} ${outStore(s.outWidth, s.valueDim)}
      ${f.entry(
        s.rowGroups * s.columnGroups,
        `
        let index = workgroupIndex(group, groups);
        if (index >= uniforms.workgroups) { return; }
        ${ranges ? runOf : equalSegments}
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let first = min(firstToken, length);
        let end = min(lastToken, length);
        let rowGroup = subgroup / ${s.columnGroups}u;
        let ownColumns = subgroup % ${s.columnGroups}u * ${s.columns / s.columnGroups}u;
        let rate = ${rateOf('head')};
        let stateBase = ((batch * uniforms.heads + head) * ${ranges ? '1u' : 'uniforms.segments'} + position.z) * ${s.keyDim * s.valueDim}u;
        ${this.declareState()}
        ${rangeVariables}
        ${ranges ? leadFrom(s.chunk, s.final) : 'var at = first;'}
        ${s.initial ? only(ranges, 'at == 0u', this.loadInitial()) : ''}
        var count = min(${s.chunk}u, end - at);
        ${tiles.map((tile) => tile.declare()).join('\n')}
        ${turns?.begin() ?? ''}
        ${ranges ? this.lead() : tiles.map((tile) => tile.fetch()).join('\n')}
        var done = 0u;
        ${this.declareAdded()}
        while (at < end) {
          ${this.chunkHead(tiles)}
          ${this.chunk()}
        }
        ${this.wayOut()}
        ${s.final ? only(ranges, 'lastToken >= uniforms.tokens', this.storeFinal()) : ''}
        ${s.lengths ? zeroTail(s.columns, this.lanes, s.outWidth === 8, 'lastToken') : ''}`,
        { lanesInOrder: true },
      )}`;
  }

  private chunkHead(tiles: readonly HeldTile[]): string {
    const { turns } = this.tiles;
    return `
          let held = count;
          ${turns?.factors() ?? ''}
          ${tiles.map((tile) => tile.turn()).join(' ')}
          let whole = exp2(rate * f32(held));`;
  }

  /**
   * One chunk, in steps with a barrier behind each. A slice takes three: its addition is stored, joined to the state, multiplied by
   * queries; the next slice is one step behind.
   */
  private chunk(): string {
    const { layout } = this;
    const { queries, keys, values } = this.tiles;
    const { slices } = this.s;
    const steps: string[] = [];
    const at = (i: number, text: string): void => void (steps[i] = `${steps[i] ?? ''}\n${text}`);
    at(0, this.begin());
    at(1, queries.put('exp2(rate * f32(r + 1u - uniforms.reverse))'));
    for (let i = 0; i < slices; i++) {
      at(i, this.storeAdded(i));
      at(i + 2, this.fromState(i));
      at(i + 1, this.joinAdded(i));
    }
    // scores take a part of `stage` that no slice is in any more
    const scored = layout.masked === undefined ? slices + 1 : slices;
    const part = slices === 1 ? 1 : layout.masked === undefined ? 0 : slices % 3;
    at(scored, this.storeScores(part * layout.slice));
    at(scored + 1, this.mask(part * layout.slice));
    // keys come back once the last slice has left their place
    const usesKeys = range(slices).filter((i) => this.place(i).array === 'right');
    const keyed = usesKeys.length > 0 ? Math.max(...usesKeys) + 3 : 1;
    at(keyed, keys.put(this.keyFactor(' * shrink')));
    at(Math.max(scored + 2, keyed + 1, slices + 2), this.end());
    return `
          ${this.wayOut()}
          ${queries.put()}
          ${keys.put()}
          ${values.put()}
          ${joinChunk(peaks({ q: queries, k: keys, v: values }))}
          workgroupBarrier();
          ${Array.from(steps, (text) => `${text ?? ''}\nworkgroupBarrier();`).join('\n')}`;
  }

  /** The chunk behind is on its way, ranges are chosen, scores are made. */
  private begin(): string {
    const { s, loops } = this;
    const { queries, keys, values } = this.tiles;
    return `
          ${queries.declare('next')} ${keys.declare('next')}
          let nextAt = at + held;
          let nextCount = min(${s.chunk}u, end - nextAt);
          ${queries.fetch('nextAt', 'nextCount', 'next')} ${keys.fetch('nextAt', 'nextCount', 'next')} ${values.fetch('nextAt', 'nextCount')}
          ${chunkRange(s.keyDim, s.gain)}
          outFactor = up;
          let unshrinkBefore = unshrink;
          ${addedRange(s.chunk)}
          ${this.scores()}
          ${loops.declare('o', this.ownTokens)}`;
  }

  /** out += P V; what the chunk adds to the state; outputs to `stage`. */
  private end(): string {
    const { f, loops, layout } = this;
    const { queries, keys } = this.tiles;
    const scores: Place = layout.masked === undefined ? { array: 'left', base: 0 } : { array: 'stage', base: layout.masked };
    return `
          wholeBefore = whole;
          done = held;
          ${queries.take()} ${keys.take()}
          at = nextAt;
          count = nextCount;
          ${this.clearAdded()}
          ${this.eachTokenBlock(
            (t) => `
            ${this.loadValues(t)}
            ${loops.each(
              0,
              this.ownTokens,
              (r) => `
              ${f.loadLeft('part', scores.array, `${scores.base}u + ${this.tokenRow(r)} * ${layout.scoreStride}u + ${u32(times(t, 2))}`, `${layout.scoreStride}u`)}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `value${c}`))}`,
            )}
            ${this.addKeys(t, 'u')}`,
          )}
          ${this.stageOutputs()}`;
  }

  /** The state before the first token of a run, summed in f32 fragments; keys and values of the first chunk of it are on their way then. */
  private lead(): string {
    const { f, loops } = this;
    const { queries, keys, values } = this.tiles;
    return `
        ${loops.declare('s', this.ownKeys)}
        ${keys.fetch()} ${values.fetch()}
        while (at < first) {
          ${this.chunkHead([keys, values])}
          ${keys.put(this.keyFactor())}
          ${values.put()}
          ${joinLead(peaks({ k: keys, v: values }))}
          workgroupBarrier();
          at += held;
          count = min(${this.s.chunk}u, end - at);
          ${keys.fetch()} ${values.fetch()}
          ${leadRange}
          wholeBefore *= whole;
          ${loops.each(0, this.ownKeys, (r) => loops.columnsOf((c) => f.scale(loops.at('s', r, c), 'whole')))}
          ${this.addToState()}
          workgroupBarrier();
        }
        ${queries.fetch()}
        ${this.joinFragments()}
        wholeBefore = 1.0;`;
  }

  /** Decay of a key until the end of its chunk; rows behind the last are zeros and take any finite factor. */
  private keyFactor(more = ''): string {
    return `exp2(rate * f32(max(i32(held + uniforms.reverse) - 1 - i32(r), 0))) * uniforms.keyScale${more}`;
  }

  private storeScores(base: number): string {
    const { f, layout, scoreLoops: loops } = this;
    const stored = loops.each(0, this.ownTokens, (r) =>
      loops.columnsOf((c) => {
        const place = `${base}u + ${this.tokenRow(r)} * ${layout.scoreFloatStride}u + ownScores / 4u + ${(c * f.N) / 4}u`;
        return f.store(loops.at('p', r, c), 'stage', place, `${layout.scoreFloatStride}u`);
      }),
    );
    return only(this.scoreGroups < this.s.columnGroups, `scoreGroup < ${this.scoreGroups}u`, stored);
  }

  /** Scores at `base` of `stage`, times their decay, those in the future zero. */
  private mask(base: number): string {
    const { chunk } = this.s;
    const { scoreStride, scoreFloatStride, masked } = this.layout;
    // j + n behind i is in the future; the clamp keeps what is thrown away finite
    const four = (n: number): string => {
      const decay = range(4).map((e) => `exp2(rate * f32(max(i32(i - j) - ${n + e}, 0)))`);
      const past = range(4).map((e) => `j + ${n + e}u <= i`);
      return `fourOf(select(vec4f(), ${n === 0 ? 'lower' : 'upper'} * vec4f(${decay.join(', ')}) * scale, vec4<bool>(${past.join(', ')})))`;
    };
    const place = masked === undefined ? 'left[placed]' : `stage[${masked}u + placed]`;
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
              let staged = ${base}u + i * ${scoreFloatStride}u + j / 4u;
              if (j <= i) { ${eightStaged} ${place} = vec4u(${four(0)}, ${four(4)}); } else { ${place} = vec4u(); }`,
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
