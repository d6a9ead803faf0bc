import { Fragments, type KernelContext, range } from '@heed/core/~internal';
import { u32 } from './fragment-loops.js';
import { type GatedLayout, gatedLayout } from './gated-matrix-tile.js';
import { GatedLanes, LaneItems, type PairLoad } from './gated-tile.js';
import { eightsDeclared, HeldTile } from './held-tile.js';
import { MatrixPieces, type MatrixSpec } from './matrix-pieces.js';
import { lengthOf, log2e, segmentOf, tokenOf } from './text.js';

export interface GatedStatesSpec extends MatrixSpec {
  gate: 'head' | 'channels';
  pairs: PairLoad;
  gatePairs: PairLoad;
  reverse: boolean;
  /** Also for a column of ones. */
  ones: boolean;
}

export function gatedStatesText(s: GatedStatesSpec, { capabilities }: KernelContext): string {
  const { stage } = gatedLayout(s.keyDim, s, false, 'rows');
  const packed = ['right', 'values', ...(stage > 0 ? ['stage'] : [])];
  return new GatedStatesText(s, new Fragments(capabilities, { N: s.fragmentColumns as 8 | 16, packed })).kernel();
}

/**
 * What a segment adds to the state: sum of exp(b_end - b_s) k_s v_s^T. Swept from its end, so that the exponents are known and at most 0,
 * fragments are never scaled, and the sweep ends where every channel has decayed below 2^-27.
 */
class GatedStatesText extends MatrixPieces {
  private readonly gated: GatedLayout;
  private readonly items: LaneItems;
  private readonly keys: GatedLanes;
  private readonly values: HeldTile;

  declare protected readonly s: GatedStatesSpec;

  constructor(s: GatedStatesSpec, f: Fragments) {
    super(s, f);
    this.gated = gatedLayout(s.keyDim, s, false, 'rows');
    this.items = new LaneItems(f.hardware);
    this.keys = new GatedLanes(this.gated, this.items, '0u', s.keyDim);
    this.values = new HeldTile({
      rows: s.chunk,
      lanes: this.lanes,
      name: 'v',
      tile: 'values',
      load: s.loadV,
      dim: s.valueDim,
      width: s.columns,
      stride: this.layout.valueStride,
      first: 'columns',
    });
  }

  kernel(): string {
    const { s, f, loops, layout, keys } = this;
    const { channels } = this.gated;
    const fetch = `
          ${keys.fetchGates(s.gate, s.gatePairs)}
          ${keys.fetch('k', s.pairs)}
          ${this.values.fetch()}`;
    const storeTotals =
      s.gate === 'head'
        ? `if (lane == 0u) { store_totals(segmentIndex, ${keys.at('ran', 0)}.x / ${log2e}); }`
        : `if (subgroup == 0u) { ${keys.eachPair((u) =>
            range(2)
              .map(
                (e) =>
                  `if (d + ${e}u < ${s.keyDim}u) { store_totals(segmentIndex * ${s.keyDim}u + d + ${e}u, ${keys.at('ran', u)}[${e}] / ${log2e}); }`,
              )
              .join(' '),
          )} }`;
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      var<workgroup> right: array<vec4u, ${layout.right}>;
      var<workgroup> values: array<vec4u, ${layout.values}>;
      var<workgroup> sums: array<vec4u, ${this.gated.sums}>;
      ${layout.stage > 0 ? `var<workgroup> stage: array<vec4u, ${layout.stage}>;` : ''}
      var<workgroup> alive: array<atomic<u32>, 4>;
      var<workgroup> goOn: vec4u;
      ${eightsDeclared}
      ${f.entry(
        s.rowGroups * s.columnGroups,
        `
        let index = workgroupIndex(group, groups);
        if (index >= uniforms.workgroups) { return; }
        let position = segmentOf(index);
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let first = min(position.z * uniforms.segmentTokens, length);
        let end = min(first + uniforms.segmentTokens, length);
        let rowGroup = subgroup / ${s.columnGroups}u;
        let ownColumns = subgroup % ${s.columnGroups}u * ${s.columns / s.columnGroups}u;
        let segmentIndex = (batch * uniforms.heads + head) * uniforms.segments + position.z;
        let stateBase = segmentIndex * ${s.keyDim * s.valueDim}u;
        ${loops.declare('s', this.ownKeys)}
        // the sum of the rates behind the rows at hand
        ${keys.declarePairs('ran')}
        ${s.ones ? keys.declarePairs('gathered') : ''}
        var behind = end;
        var count = 0u;
        var at = behind;
        ${keys.declare('rate', 'vec2f')}
        ${keys.declare('held_k', 'u32')}
        ${this.values.declare()}
        ${f.hardware ? `count = min(${s.chunk}u, behind - first); at = behind - count; ${fetch} ${keys.putSums('sums')}` : ''}
        workgroupBarrier();
        var going = behind > first;
        while (going) {
          ${keys.declarePairs('later', 'whole')}
          ${this.sums()}
          ${this.values.put()}
          ${keys.eachPair((u) => `if (d < ${channels}u && any(${keys.at('ran', u)} + ${keys.at('whole', u)} > vec2f(-27.0))) { atomicStore(&alive[0], 1u); }`)}
          ${keys.eachPair((u) => `${keys.at('ran', u)} += ${keys.at('whole', u)};`)}
          workgroupBarrier();
          behind = at;
          count = min(${s.chunk}u, behind - first);
          at = behind - count;
          ${fetch}
          ${keys.putSums('sums')}
          if (lane == 0u) { goOn = vec4u(atomicLoad(&alive[0])); atomicStore(&alive[0], 0u); }
          ${this.addToState()}
          going = workgroupUniformLoad(&goOn).x > 0u && behind > first;
        }
        ${this.storeFinal()}
        if (position.x == 0u) { ${storeTotals} }
        ${s.ones ? this.storeKeySum() : ''}`,
        { lanesInOrder: true },
      )}`;
  }

  /** Keys decayed until the end of the segment, into workgroup memory. */
  private sums(): string {
    const { s, keys, layout } = this;
    const { subgroups } = this.gated;
    // a token's own gate decays what leaves it only where time is reversed
    const power = (i: string | number): string => {
      const own = `${keys.at('power', i)} = max(sum, vec2f(-60.0));`;
      const add = `sum += ${keys.at('rate', i)};`;
      return s.reverse ? `${add} ${own}` : `${own} ${add}`;
    };
    return `
          ${this.items.each('n', subgroups, (n) =>
            keys.eachPair(
              (u) =>
                `let sum = ${keys.sumAt('sums', u32(n))}; ${keys.at('whole', u)} += sum; if (${u32(n)} > subgroup) { ${keys.at('later', u)} += sum; }`,
            ),
          )}
          ${keys.declare('power', 'vec2f')}
          ${keys.eachPair((u) => `var sum = ${keys.at('ran', u)} + ${keys.at('later', u)}; ${keys.eachToken(u, power, true)}`)}
          ${keys.put(
            'k',
            'right',
            layout.keyStride,
            (i) => `(exp2(${keys.at('power', i)}) * uniforms.keyScale)`,
            (i) => (s.ones ? `${keys.at('gathered', keys.pairOf(i))} += value;` : ''),
          )}`;
  }

  private storeKeySum(): string {
    const { s, keys } = this;
    return `
        workgroupBarrier();
        ${keys.putPairs('sums', (u) => `var total = ${keys.at('gathered', u)};`)}
        workgroupBarrier();
        if (position.x == 0u && subgroup == 0u) {
          ${keys.eachPair(
            (_u) => `
          var sum = vec2f();
          ${this.items.each('n', this.gated.subgroups, (n) => `sum += ${keys.sumAt('sums', u32(n))};`)}
          ${[0, 1].map((e) => `if (d + ${e}u < ${s.keyDim}u) { store_keySum(segmentIndex * ${s.keyDim}u + d + ${e}u, sum[${e}] * uniforms.stateScale); }`).join(' ')}`,
          )}
        }`;
  }
}
