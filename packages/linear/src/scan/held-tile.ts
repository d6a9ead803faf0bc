import { range } from '@heed/core/~internal';
import type { HalfLoad } from './views.js';

/** An f16 tile of `rows` tokens, `width` wide, of which each lane holds some items in registers; what lies outside is zero. */
export interface HeldTileOptions {
  /** Binding. */
  name: string;
  /** Workgroup array. */
  tile: string;
  load: HalfLoad;
  /** Elements of a row of the operand. */
  dim: number;
  width: number;
  /** Halves from one row of the workgroup array to the next. */
  stride: number;
  /** First element of the operand's row. */
  first: string;
  rows: number;
  lanes: number;
}

/** Text that fetches a tile into registers, and that puts it into workgroup memory, as it is or scaled by row, any number of times. */
export class HeldTile {
  private readonly size: 8 | 4 | 1;
  private readonly across: number;
  private readonly items: number;

  constructor(private readonly o: HeldTileOptions) {
    this.size = o.load === 'half8' ? 8 : o.load === 'half4' ? 4 : 1;
    this.across = o.width / this.size;
    this.items = Math.ceil((o.rows * this.across) / o.lanes);
  }

  declare(): string {
    const type = { 8: 'vec4u', 4: 'vec4<f16>', 1: 'f16' }[this.size];
    return range(this.items)
      .map((i) => `var held_${this.o.name}${i}: ${type};`)
      .join(' ');
  }

  /** Rows `at` .. `at + count` of the operand; zeros behind them. */
  fetch(): string {
    const { name, first, dim } = this.o;
    const zero = { 8: 'vec4u()', 4: 'vec4<f16>()', 1: '0.0h' }[this.size];
    return this.each(
      (i) => `
            held_${name}${i} = ${zero};
            if (r < count && ${first} + d < ${dim}u) {
              let base = batch * uniforms.${name}Batch + tokenAt(at + r, length) * uniforms.${name}Token + head * uniforms.${name}Head;
              held_${name}${i} = ${name}[base_${name}() + (base + ${first} + d) / ${this.size}u];
            }`,
    );
  }

  /** `let name` = the largest magnitude among this lane's items, f32. */
  peak(name: string): string {
    const { name: own } = this.o;
    const one = (i: number): string => {
      const held = `held_${own}${i}`;
      if (this.size === 8) return `peakOfWords(${held})`;
      return this.size === 4 ? `peakOfFour(${held})` : `abs(f32(${held}))`;
    };
    return `let ${name} = ${range(this.items)
      .map(one)
      .reduce((a, b) => `max(${a}, ${b})`)};`;
  }

  /** Into workgroup memory; `factor`, an f32 expression of the row \`r\`, scales it. */
  put(factor?: string): string {
    const { name, tile, stride } = this.o;
    const scaled = (value: string): string => (factor === undefined ? value : `f16(f32(${value}) * factor)`);
    const store = (i: number): string => {
      const held = `held_${name}${i}`;
      if (this.size === 1) return `${tile}[place] = ${scaled(held)};`;
      if (this.size === 4)
        return range(4)
          .map((e) => `${tile}[place + ${e}u] = ${scaled(`${held}[${e}]`)};`)
          .join(' ');
      return range(4)
        .map(
          (e) =>
            `let pair${e} = bitcast<vec2<f16>>(${held}[${e}]); ${tile}[place + ${2 * e}u] = ${scaled(`pair${e}.x`)}; ${tile}[place + ${2 * e + 1}u] = ${scaled(`pair${e}.y`)};`,
        )
        .join('\n');
    };
    return this.each(
      (i) => `
            let place = r * ${stride}u + d;
            ${factor === undefined ? '' : `let factor = ${factor};`}
            ${store(i)}`,
    );
  }

  /** `body` for each item of this lane: row \`r\`, element \`d\` of it. */
  private each(body: (i: number) => string): string {
    const { rows, lanes } = this.o;
    const total = rows * this.across;
    const one = (i: number): string => `
            let item = lane + ${i * lanes}u;
            let r = item / ${this.across}u;
            let d = item % ${this.across}u * ${this.size}u;
            ${body(i)}`;
    return range(this.items)
      .map((i) => ((i + 1) * lanes <= total ? `{ ${one(i)} }` : `if (lane + ${i * lanes}u < ${total}u) { ${one(i)} }`))
      .join('\n');
  }
}
