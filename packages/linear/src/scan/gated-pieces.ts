import type { Fragments } from '@heed/core/~internal';
import { range } from '@heed/core/~internal';
import { u32 } from './fragment-loops.js';
import { type GatedLayout, gatedLayout, type GatedSide } from './gated-matrix-tile.js';
import { GatedNorm } from './gated-norm-text.js';
import { GatedLanes, LaneItems, type PairLoad } from './gated-tile.js';
import { HeldTile } from './held-tile.js';
import { MatrixPieces, type MatrixSpec } from './matrix-pieces.js';

export interface GatedMatrixSpec extends MatrixSpec {
  side: GatedSide;
  gate: 'head' | 'channels';
  /** How gated operands and gates are loaded; for the side `columns` these are v and the outputs. */
  pairs: PairLoad;
  gatePairs: PairLoad;
  /** Running sums leave a token's own gate out: it decays what leaves the token. */
  reverse: boolean;
  /** Outputs are divided by the scan of a column of ones plus `eps`; only for gates of rows. */
  ones: boolean;
}

/** Most that a channel may decay within a step, in bits: operands relative to the middle then stay in the range of f16. */
const mostBits = 24;
/** That to either side of the middle, and one bit more; a token that decays further by itself is cut there. */
const mostPower = mostBits / 2 + 1;

/** What lanes do around the products of a gated step: gates, factors, operands in and out, the state. */
export class GatedPieces extends MatrixPieces {
  protected readonly gated: GatedLayout;
  protected readonly items: LaneItems;
  protected readonly channels: GatedLanes;
  protected readonly plain: HeldTile[];
  protected readonly values: HeldTile;
  protected readonly rows: boolean;
  protected readonly norm: GatedNorm | undefined;

  declare protected readonly s: GatedMatrixSpec;

  constructor(s: GatedMatrixSpec, f: Fragments) {
    super(s, f);
    this.rows = s.side === 'rows';
    this.gated = gatedLayout(s.keyDim, s, true, s.side);
    this.items = new LaneItems(f.hardware);
    this.channels = new GatedLanes(this.gated, this.items, this.rows ? '0u' : 'columns', this.rows ? s.keyDim : s.valueDim);
    this.norm = s.ones ? new GatedNorm(f, this.gated, this.channels, this.items) : undefined;
    const { layout } = this;
    const held = { rows: s.chunk, lanes: this.lanes };
    const keyRows = { dim: s.keyDim, width: layout.keys, stride: layout.keyStride, first: '0u' };
    this.values = new HeldTile({
      ...held,
      name: 'v',
      tile: 'values',
      load: s.loadV,
      dim: s.valueDim,
      width: s.columns,
      stride: layout.valueStride,
      first: 'columns',
    });
    this.plain = this.rows
      ? [this.values]
      : [
          new HeldTile({ ...held, ...keyRows, name: 'q', tile: 'left', load: s.loadQ }),
          new HeldTile({ ...held, ...keyRows, name: 'k', tile: 'right', load: s.loadK }),
        ];
  }

  /** Items of eight state elements a lane: slice, row of the state, column. */
  protected eachStateItem(slice: number, body: (low: string, high: string) => string): string {
    const across = this.s.columns / 8;
    const total = this.sliceRows * across;
    const whole = this.stateItems * this.lanes === total;
    return this.items.each('n', this.stateItems, (i) => {
      const index = typeof i === 'number' ? slice * this.stateItems + i : `${slice * this.stateItems}u + ${i}`;
      return `
            let item = lane + ${u32(i)} * ${this.lanes}u;
            ${whole ? '' : `if (item < ${total}u) {`}
            let staged = item / ${across}u;
            let c = item % ${across}u * 8u;
            let row = ${this.stateRow(slice, 'staged / 16u')} + staged % 16u;
            ${body(this.items.at('low', index), this.items.at('high', index))}
            ${whole ? '' : '}'}`;
    });
  }

  protected get stateItems(): number {
    return Math.ceil((this.sliceRows * this.s.columns) / 8 / this.lanes);
  }

  protected eachSlice(body: (slice: number) => string): string {
    return range(this.s.slices).map(body).join('\n');
  }

  /** The state of a workgroup in its lanes' registers, f32, and the initial one. */
  protected declareState(): string {
    const count = this.s.slices * this.stateItems;
    const load = (first: number): string =>
      range(4)
        .map((e) => `initialAt(stateBase, row, columns + c + ${first + e}u)`)
        .join(', ');
    const initial = (slice: number): string =>
      this.eachStateItem(
        slice,
        (low, high) => `${low} = vec4f(${load(0)}) / uniforms.stateScale; ${high} = vec4f(${load(4)}) / uniforms.stateScale;`,
      );
    return `
        ${this.items.declare('low', 'vec4f', count)} ${this.items.declare('high', 'vec4f', count)}
        ${this.s.initial ? this.eachSlice(initial) : ''}`;
  }

  protected join(slot: number, value: string): string {
    return this.f.hardware
      ? `{ let most = subgroupMax(bitcast<u32>(${value})); if (subgroupLane == 0u) { atomicMax(&peaks[turn + ${slot}u], most); } }`
      : `atomicMax(&peaks[turn + ${slot}u], bitcast<u32>(${value}));`;
  }

  /** The largest operands of the next step. */
  protected announce(): string {
    const peaks = this.rows
      ? `${this.channels.peak('peakQ', 'q')} ${this.channels.peak('peakK', 'k')} ${this.values.peak('peakV')}`
      : `${this.plain[0]?.peak('peakQ')} ${this.plain[1]?.peak('peakK')} ${this.channels.peak('peakV', 'v')}`;
    return `{ ${peaks} ${this.join(0, 'peakQ')} ${this.join(1, 'peakK')} ${this.join(2, 'peakV')} }`;
  }

  /** The largest element of the state. */
  protected announceState(): string {
    return `{
          var fours = vec4f();
          ${this.items.each('n', this.s.slices * this.stateItems, (i) => `fours = max(fours, max(abs(${this.items.at('low', i)}), abs(${this.items.at('high', i)})));`)}
          ${this.join(3, 'max(max(fours.x, fours.y), max(fours.z, fours.w))')}
        }`;
  }

  /** Of the next step: sums `before` the tokens of this lane and of the `whole` step, and how many token groups stay in range. */
  protected sums(): string {
    const { channels } = this;
    const { subgroups } = this.gated;
    const [before, whole] = [this.pair('before'), this.pair('whole')];
    return `{
          ${channels.eachPair((u) => `${whole(u)} = vec2f();`)}
          var good = 0u;
          ${this.items.each(
            'n',
            subgroups,
            (n) => `
            var kept = true;
            ${channels.eachPair(
              (u) => `
              if (${u32(n)} == subgroup) { ${before(u)} = ${whole(u)}; }
              ${whole(u)} += ${channels.sumAt('sums', u32(n))};
              kept = kept && all(${whole(u)} >= vec2f(-${mostBits}.0));`,
            )}
            good += select(0u, 1u, kept);`,
          )}
          if (good < ${subgroups}u) { atomicMin(&vote[0], good); }
        }`;
  }

  protected pair(name: string): (u: string | number) => string {
    return (u) => this.channels.at(name, u);
  }

  /** `held`, how many tokens the step takes; `power`, the running sums of this lane relative to the middle. */
  protected powers(): string {
    const { s, channels } = this;
    const [before, whole] = [this.pair('before'), this.pair('whole')];
    const power = (i: string | number): string => {
      const own = `${channels.at('power', i)} = clamp(sum - reference, vec2f(-${mostPower}.0), vec2f(${mostPower}.0));`;
      const add = `sum += ${channels.at('rate', i)};`;
      return s.reverse ? `${own} ${add}` : `${add} ${own}`;
    };
    return `
          let held = min(count, max(groupsTaken * ${this.gated.tokens}u, 1u));
          if (held < count) {
            ${channels.eachPair(
              (u) => `
            ${whole(u)} = vec2f();
            for (var n = 0u; n < groupsTaken; n++) { ${whole(u)} += ${channels.sumAt('sums', 'n')}; }`,
            )}
          }
          ${channels.eachPair(
            (u) => `
          var reference = ${whole(u)} * 0.5;
          if (groupsTaken == 0u) { ${whole(u)} = ${channels.at('rate', u)}; reference = ${s.reverse ? 'vec2f()' : channels.at('rate', u)}; }
          ${s.ones ? `${channels.at('middle', u)} = reference;` : ''}
          var sum = ${before(u)};
          ${channels.eachToken(u, power)}
          if (subgroup == 0u && d < ${this.gated.channels}u) {
            references[d] = vec2f(reference.x, ${whole(u)}.x);
            references[d + 1u] = vec2f(reference.y, ${whole(u)}.y);
          }`,
          )}`;
  }

  /** Powers of two that keep what becomes f16 in its range: `up` on the gated operands, `down` on state and scores. */
  protected factors(): string {
    const { keyDim } = this.s;
    const peak = (slot: number): string => `bitcast<f32>(atomicLoad(&peaks[turn + ${slot}u]))`;
    return `
          let peakOfQ = ${peak(0)};
          let peakOfK = ${peak(1)} * abs(uniforms.keyScale);
          ${
            this.rows
              ? `let upQ = powerOfTwo(1 - exponentOf(peakOfQ));
          let up = powerOfTwo(1 - exponentOf(peakOfK));
          let mostScore = ${keyDim * 16}.0;`
              : `let upQ = 1.0;
          let up = powerOfTwo(1 - exponentOf(${peak(2)}));
          let mostScore = peakOfQ * peakOfK * ${keyDim}.0;`
          }
          let excess = clamp(i32(bitcast<u32>(max(${peak(3)} * up, mostScore)) >> 23u) - 141, -60, 100);
          let down = powerOfTwo(-excess);
          outFactor = powerOfTwo(excess) / (upQ * up) * uniforms.stateScale * uniforms.queryScale;
          turn = 4u - turn;`;
  }

  protected put(): string {
    const { channels, layout } = this;
    // maxima of the step behind the next begin at 0; nobody reads these before the barrier
    const clear = 'if (lane < 4u) { atomicStore(&peaks[turn + lane], 0u); }';
    if (!this.rows)
      return `${clear}
          ${this.plain[0]?.put()}
          ${this.plain[1]?.put('select(0.0, uniforms.keyScale, r < held)')}
          ${channels.put('v', 'values', layout.valueStride, (i) => `(exp2(-${channels.at('power', i)}) * up)`)}`;
    const { norm } = this;
    const query = (i: string | number): string => `(exp2(${channels.at('power', i)}) * upQ)`;
    const key = (i: string | number): string => `(exp2(-${channels.at('power', i)}) * select(0.0, up * uniforms.keyScale, r < held))`;
    return `${clear}
          ${norm?.begin() ?? ''}
          ${channels.put('q', 'left', layout.keyStride, query, (i) => norm?.query(i) ?? '')}
          ${channels.put('k', 'right', layout.keyStride, key, (i) => norm?.key(i) ?? '')}
          ${this.values.put()}
          ${norm?.reached() ?? ''}`;
  }

  /** The reference and the whole decay of an item of the state: a row's, or those of eight columns. */
  protected decays(use: (reference: (half: 0 | 1) => string, whole: (half: 0 | 1) => string) => string): string {
    if (this.rows)
      return `let own = references[row]; ${use(
        () => 'vec4f(own.x)',
        () => 'vec4f(own.y)',
      )}`;
    const four = (half: 0 | 1, part: 'x' | 'y'): string =>
      `vec4f(${range(4)
        .map((e) => `references[c + ${4 * half + e}u].${part}`)
        .join(', ')})`;
    return use(
      (half) => four(half, 'x'),
      (half) => four(half, 'y'),
    );
  }

  /** A slice of the state, decayed to the middle, as an f16 operand. */
  protected storeStateSlice(slice: number): string {
    return `{ let scale = up * down;
          ${this.eachStateItem(slice, (low, high) =>
            this.decays(
              (reference) =>
                `right[staged * ${this.layout.valueStride}u + c / 8u] = vec4u(fourOf(${low} * exp2(${reference(0)}) * scale), fourOf(${high} * exp2(${reference(1)}) * scale));`,
            ),
          )} }`;
  }

  /** The state behind the step. */
  protected addSlice(slice: number): string {
    const stride = this.layout.floatStride;
    return `{ let scale = 1.0 / up;
          ${this.eachStateItem(slice, (low, high) =>
            this.decays((reference, whole) =>
              ([0, 1] as const)
                .map((half) => {
                  const own = half === 0 ? low : high;
                  return `${own} = fma(${own}, exp2(${whole(half)}), bitcast<vec4f>(stage[staged * ${stride}u + c / 4u + ${half}u]) * (exp2(${whole(half)} - ${reference(half)}) * scale));`;
                })
                .join(' '),
            ),
          )} }`;
  }

  /** Outputs of the `done` tokens before `at`, which wait in `stage`. */
  protected wayOut(): string {
    const { chunk, columns, valueDim } = this.s;
    const stride = this.layout.floatStride;
    const base = 'batch * uniforms.outBatch + tokenAt(at - done + r, length) * uniforms.outToken + head * uniforms.outHead';
    if (this.rows)
      return this.eachItem(
        4,
        chunk,
        columns,
        (row, c) => `
              if (${row} < done) {
                let r = ${row};
                vectorTo_out(${base}, columns + ${c}, bitcast<vec4f>(stage[r * ${stride}u + ${c} / 4u]) * outFactor${this.s.ones ? ' / (normAt(r) * outFactor + uniforms.eps)' : ''});
              }`,
      );
    return this.channels.each(
      (i) => `if (r < done && d < ${columns}u) {
              let base = ${base};
              let pair = bitcast<vec2f>(vec2u(stage[r * ${stride}u + d / 4u][d % 4u], stage[r * ${stride}u + d / 4u][d % 4u + 1u])) * exp2(${this.channels.at('power', i)}) * outFactor;
              if (columns + d < ${valueDim}u) { store_out(base + columns + d, pair.x); }
              if (columns + d + 1u < ${valueDim}u) { store_out(base + columns + d + 1u, pair.y); }
            }`,
    );
  }

  protected override storeFinal(): string {
    return this.eachSlice((slice) =>
      this.eachStateItem(
        slice,
        (low, high) => `if (row < ${this.s.keyDim}u) {
              vectorTo_state(stateBase + row * ${this.s.valueDim}u, columns + c, ${low} * uniforms.stateScale);
              vectorTo_state(stateBase + row * ${this.s.valueDim}u, columns + c + 4u, ${high} * uniforms.stateScale);
            }`,
      ),
    );
  }
}
