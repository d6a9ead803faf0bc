import { range } from '@heed/core/~internal';
import type { GatedLayout } from './gated-matrix-tile.js';
import { log2e } from './text.js';

/** How pairs of channels are loaded from a row of halves or of f32. */
export type PairLoad = 'pair' | 'one';

/**
 * `body` for each index below `count`, and how the element of an index is named: unrolled into variables on hardware, so that they
 * live in registers; a loop over an array in the emulation, whose compiler would take minutes. `count` stays hidden from it.
 */
export class LaneItems {
  constructor(readonly unrolled: boolean) {}

  declare(name: string, type: string, count: number): string {
    if (!this.unrolled) return `var ${name} = array<${type}, ${count}>();`;
    return range(count)
      .map((i) => `var ${name}${i} = ${type}();`)
      .join(' ');
  }

  at(name: string, i: string | number): string {
    return this.unrolled ? `${name}${i}` : `${name}[${i}]`;
  }

  each(index: string, count: number, body: (i: string | number) => string): string {
    if (this.unrolled)
      return range(count)
        .map((i) => `{ ${body(i)} }`)
        .join('\n');
    return `for (var ${index} = 0u; ${index} < min(${count}u, ${count - 1}u + groups.x); ${index}++) { ${body(index)} }`;
  }
}

/**
 * Text of what lanes hold by channels: `perLane` neighbouring channels of the `tokens` tokens of their subgroup, in pairs. A running
 * sum over tokens then needs no exchange but that of sums between subgroups.
 */
export class GatedLanes {
  readonly pairs: number;

  constructor(
    readonly layout: GatedLayout,
    private readonly items: LaneItems,
    /** First channel of the workgroup, and all channels of a row. */
    private readonly first: string,
    private readonly dim: number,
  ) {
    this.pairs = layout.perLane / 2;
  }

  /** `body` for each token and pair of channels of a lane: row `r` of the chunk, channel `d` among the workgroup's. */
  each(body: (i: string | number) => string): string {
    const { tokens, perLane } = this.layout;
    return this.items.each(
      'e',
      tokens * this.pairs,
      (i) => `
            let r = subgroup * ${tokens}u + ${this.index(i)} / ${this.pairs}u;
            let d = subgroupLane * ${perLane}u + ${this.index(i)} % ${this.pairs}u * 2u;
            ${body(i)}`,
    );
  }

  /** `body` for each pair of channels of a lane, the first of them `d`. */
  eachPair(body: (u: string | number) => string): string {
    return this.items.each('u', this.pairs, (u) => `let d = subgroupLane * ${this.layout.perLane}u + ${this.index(u)} * 2u; ${body(u)}`);
  }

  /** `body` for each token of a lane, of pair `u`, with the index of both; `last` first where `backward`. */
  eachToken(u: string | number, body: (i: string | number) => string, backward = false): string {
    const { tokens } = this.layout;
    return this.items.each('t', tokens, (t) => {
      if (typeof t === 'number' && typeof u === 'number') return body((backward ? tokens - 1 - t : t) * this.pairs + u);
      return body(`${backward ? `(${tokens - 1}u - t)` : 't'} * ${this.pairs}u + u`);
    });
  }

  declare(name: string, type: string): string {
    return this.items.declare(name, type, this.layout.tokens * this.pairs);
  }

  declarePairs(...names: string[]): string {
    return names.map((name) => this.items.declare(name, 'vec2f', this.pairs)).join(' ');
  }

  at(name: string, i: string | number): string {
    return this.items.at(name, i);
  }

  /** Rows `at` .. `at + count` of f16 binding `name` into `held_<name>`, two halves a u32; zeros outside. */
  fetch(name: string, load: PairLoad): string {
    return this.each((i) => {
      const held = this.at(`held_${name}`, i);
      const half = (e: number): string =>
        `select(0.0h, ${name}[base_${name}() + base + min(channel + ${e}u, ${this.dim - 1}u)], channel + ${e}u < ${this.dim}u)`;
      const value = load === 'pair' ? `${name}[base_${name}() + (base + channel) / 2u]` : `bitcast<u32>(vec2<f16>(${half(0)}, ${half(1)}))`;
      return `${held} = 0u; ${this.inside(name, `${held} = ${value};`)}`;
    });
  }

  /** Rates (log2 of the decays) of the rows `at` .. `at + count` into `rate`; zeros outside. */
  fetchGates(form: 'head' | 'channels', load: PairLoad): string {
    return this.each((i) => {
      const rate = this.at('rate', i);
      const one = (e: number): string =>
        `select(0.0, g[base_g() + base + min(channel + ${e}u, ${this.dim - 1}u)], channel + ${e}u < ${this.dim}u)`;
      const value =
        form === 'head'
          ? 'vec2f(g[base_g() + base])'
          : load === 'pair'
            ? 'g[base_g() + (base + channel) / 2u]'
            : `vec2f(${one(0)}, ${one(1)})`;
      return `${rate} = vec2f(); ${this.inside('g', `${rate} = max(${value}, vec2f(-1e4)) * ${log2e};`)}`;
    });
  }

  /** Token and pair of the index of both. */
  tokenOf(i: string | number): string | number {
    return typeof i === 'number' ? Math.floor(i / this.pairs) : `${i} / ${this.pairs}u`;
  }

  pairOf(i: string | number): string | number {
    return typeof i === 'number' ? i % this.pairs : `${i} % ${this.pairs}u`;
  }

  /** The lane's sums of rates over its tokens, to `array` of vec4u. */
  putSums(array: string): string {
    return this.putPairs(array, (u) => `var total = vec2f(); ${this.eachToken(u, (i) => `total += ${this.at('rate', i)};`)}`);
  }

  /** A vec2f for each pair, which `total` declares under that name, to `array` of vec4u: by token group, then channel. */
  putPairs(array: string, total: (u: string | number) => string): string {
    const { channels } = this.layout;
    return this.eachPair(
      (u) => `if (d < ${channels}u) {
              ${total(u)}
              let place = subgroup * ${channels}u + d;
              ${array}[place / 4u][place % 4u] = bitcast<u32>(total.x);
              ${array}[place / 4u][place % 4u + 1u] = bitcast<u32>(total.y);
            }`,
    );
  }

  /** `vec2f` of the sums of token group `group` for a pair of channels at `d`, zero where a lane has none. */
  sumAt(array: string, group: string): string {
    const { channels, subgroups } = this.layout;
    const at = `min(${group} * ${channels}u + d, ${subgroups * channels - 2}u)`;
    return `select(vec2f(), bitcast<vec2f>(vec2u(${array}[${at} / 4u][${at} % 4u], ${array}[${at} / 4u][${at} % 4u + 1u])), d < ${channels}u)`;
  }

  /** `held_<name>` times a vec2f `factor`, to the vec4u `array` of `stride` elements a row; `also` sees the f32 `value`. */
  put(
    name: string,
    array: string,
    stride: number,
    factor: (i: string | number) => string,
    also: (i: string | number) => string = () => '',
  ): string {
    return this.each(
      (i) => `if (d < ${this.layout.channels}u) {
              let value = vec2f(bitcast<vec2<f16>>(${this.at(`held_${name}`, i)})) * ${factor(i)};
              ${array}[r * ${stride}u + d / 8u][d / 2u % 4u] = bitcast<u32>(vec2<f16>(value));
              ${also(i)}
            }`,
    );
  }

  /** `let name` = the largest magnitude among this lane's values. */
  peak(name: string, held: string): string {
    return `var pair_${name} = vec2<f16>();
          ${this.each((i) => `pair_${name} = max(pair_${name}, abs(bitcast<vec2<f16>>(${this.at(`held_${held}`, i)})));`)}
          let ${name} = f32(max(pair_${name}.x, pair_${name}.y));`;
  }

  private index(i: string | number): string {
    return typeof i === 'number' ? `${i}u` : i;
  }

  private inside(name: string, text: string): string {
    return `let channel = ${this.first} + d;
            if (r < count && d < ${this.layout.channels}u && channel < ${this.dim}u) {
              let base = batch * uniforms.${name}Batch + tokenAt(at + r, length) * uniforms.${name}Token + head * uniforms.${name}Head;
              ${text}
            }`;
  }
}
