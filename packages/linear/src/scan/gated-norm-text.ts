import type { Fragments } from '@heed/core/~internal';
import { u32 } from './fragment-loops.js';
import type { GatedLayout } from './gated-matrix-tile.js';
import type { GatedLanes, LaneItems } from './gated-tile.js';

/**
 * The normaliser of a gated step: the scan of a column of ones, which would cost the fragments a column tile. Lanes hold the sum of decayed
 * keys of their channels (`norm`, every subgroup all of them); of each token they join what the state before the step gives and the sum of its row of scores.
 */
export class GatedNorm {
  constructor(
    private readonly f: Fragments,
    private readonly gated: GatedLayout,
    private readonly channels: GatedLanes,
    private readonly items: LaneItems,
  ) {}

  get workgroup(): string {
    return `
      // behind the values of a row: what the state before the step gives, the normaliser
      fn setReached(i: u32, x: f32) { values[${this.behind('i')}].x = bitcast<u32>(x); }
      fn setNorm(i: u32, x: f32) { values[${this.behind('i')}].y = bitcast<u32>(x); }
      fn reachedAt(i: u32) -> f32 { return bitcast<f32>(values[${this.behind('i')}].x); }
      fn normAt(i: u32) -> f32 { return bitcast<f32>(values[${this.behind('i')}].y); }
      fn sumOfEight(x: vec4u) -> f32 {
        let four = vec4f(bitcast<vec4<f16>>(x.xy)) + vec4f(bitcast<vec4<f16>>(x.zw));
        return four.x + four.y + four.z + four.w;
      }`;
  }

  private behind(row: string): string {
    return `${row} * ${this.gated.valueStride}u + ${this.gated.valueStride - 1}u`;
  }

  declare(keyDim: number, initial: boolean): string {
    const { channels } = this;
    const place = `((batch * uniforms.heads + head) * uniforms.segments + position.z) * ${keyDim}u`;
    const load = (e: number): string => `select(0.0, load_keySum(${place} + min(d + ${e}u, ${keyDim - 1}u)), d + ${e}u < ${keyDim}u)`;
    return `
        ${channels.declarePairs('norm', 'middle', 'gathered')}
        ${this.items.declare('reach', 'f32', this.gated.tokens)}
        ${initial ? channels.eachPair((u) => `${channels.at('norm', u)} = vec2f(${load(0)}, ${load(1)}) / uniforms.stateScale;`) : ''}`;
  }

  /** Before operands are put: `middle` holds what they are relative to. */
  begin(): string {
    const { channels } = this;
    return `
          ${channels.eachPair((u) => `${channels.at('gathered', u)} = vec2f();`)}
          ${this.items.each('t', this.gated.tokens, (t) => `${this.items.at('reach', t)} = 0.0;`)}`;
  }

  /** Beside a scaled query, `value`. */
  query(i: string | number): string {
    const { channels } = this;
    const [t, u] = [channels.tokenOf(i), channels.pairOf(i)];
    return `${this.items.at('reach', t)} += dot(value, ${channels.at('norm', u)} * exp2(${channels.at('middle', u)}));`;
  }

  /** Beside a scaled key, `value`. */
  key(i: string | number): string {
    return `${this.channels.at('gathered', this.channels.pairOf(i))} += value;`;
  }

  /** What the state before the step gives each token, in units of scores. */
  reached(): string {
    return this.items.each(
      't',
      this.gated.tokens,
      (t) => `
            var sum = ${this.items.at('reach', t)};
            ${[16, 8, 4, 2, 1].map((mask) => `${this.f.exchange(`other${mask}`, 'sum', mask)} sum += other${mask};`).join(' ')}
            if (subgroupLane == 0u) { setReached(subgroup * ${this.gated.tokens}u + ${u32(t)}, sum * up * down); }`,
    );
  }

  publish(): string {
    return this.channels.putPairs('sums', (u) => `var total = ${this.channels.at('gathered', u)};`);
  }

  /** The sum of decayed keys behind the step. */
  update(): string {
    const { channels } = this;
    return channels.eachPair(
      (u) => `
            var added = vec2f();
            ${this.items.each('n', this.gated.subgroups, (n) => `added += ${channels.sumAt('sums', u32(n))};`)}
            ${channels.at('norm', u)} = ${channels.at('norm', u)} * exp2(${channels.at('whole', u)})
              + added * exp2(${channels.at('whole', u)} - ${channels.at('middle', u)}) / up;`,
    );
  }

  /** Joins `part`, an item's share of its row of scores, among the `across` lanes of the row; the first writes the normaliser of row `i`. */
  row(across: number, inside: string): string {
    let text = '';
    for (let mask = 1; mask < across; mask *= 2) text += `${this.f.exchange(`other${mask}`, 'part', mask)} part += other${mask};\n`;
    return `${text} if (${inside}j == 0u) { setNorm(i, part + reachedAt(i)); }`;
  }
}
