import { range } from '@heed/core/~internal';
import type { TileTurns } from './tile-turns.js';
import type { HalfLoad } from './views.js';

/** An f16 tile of `rows` tokens, `width` wide (a multiple of 8), of which each lane holds some eights in registers; what lies outside is zero. */
export interface HeldTileOptions {
  /** Binding. */
  name: string;
  /** Workgroup array of vec4u. */
  tile: string;
  load: HalfLoad;
  /** Elements of a row of the operand. */
  dim: number;
  width: number;
  /** Elements of the workgroup array from one row to the next. */
  stride: number;
  /** First element of the operand's row. */
  first: string;
  rows: number;
  lanes: number;
  /** Turns by position once it is in registers; `dim` is then the width of the turned row. */
  turns?: TileTurns | undefined;
}

/** Eight halves as a vec4u: scaled in f32; made of eight floats; their largest magnitude. */
export const eightsDeclared: string = `
      fn fourOf(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(x)); }
      fn scaledEight(x: vec4u, factor: f32) -> vec4u {
        return vec4u(fourOf(vec4f(bitcast<vec4<f16>>(x.xy)) * factor), fourOf(vec4f(bitcast<vec4<f16>>(x.zw)) * factor));
      }
      fn peakOfEight(x: vec4u) -> f32 {
        let four = max(abs(bitcast<vec4<f16>>(x.xy)), abs(bitcast<vec4<f16>>(x.zw)));
        let pair = max(four.xy, four.zw);
        return f32(max(pair.x, pair.y));
      }`;

/** Text that fetches a tile into registers, and that puts it into workgroup memory, as it is or scaled by row, any number of times. */
export class HeldTile {
  private readonly across: number;
  private readonly items: number;

  constructor(private readonly o: HeldTileOptions) {
    this.across = o.width / 8;
    this.items = Math.ceil((o.rows * this.across) / o.lanes);
  }

  /** The registers; `next` for another tile of it, which `take` makes the one at hand. */
  declare(registers: 'held' | 'next' = 'held'): string {
    return range(this.items)
      .map((i) => `var ${registers}_${this.o.name}${i} = vec4u();`)
      .join(' ');
  }

  take(): string {
    return range(this.items)
      .map((i) => `held_${this.o.name}${i} = next_${this.o.name}${i};`)
      .join(' ');
  }

  /** Rows `at` .. `at + count` of the operand, both expressions; zeros behind them. */
  fetch(at = 'at', count = 'count', registers: 'held' | 'next' = 'held'): string {
    const { name, first, dim, load, turns } = this.o;
    const item = (place: string, size: number): string => `${name}[base_${name}() + (base + ${place}) / ${size}u]`;
    const value = (i: number): string => {
      const held = `${registers}_${name}${i}`;
      const from = turns?.source('column') ?? 'column';
      if (load === 'half8') return `${held} = ${item(from, 8)};`;
      if (load === 'half4')
        return `${held} = vec4u(bitcast<vec2u>(${item(from, 4)}), 0u, 0u);
              if (column + 4u < ${dim}u) { ${held} = vec4u(${held}.xy, bitcast<vec2u>(${item(`${from} + 4u`, 4)})); }`;
      const at = (e: number): string => (turns ? `${from} + ${e}u` : `min(column + ${e}u, ${dim - 1}u)`);
      const one = (e: number): string => `select(0.0h, ${item(at(e), 1)}, column + ${e}u < ${dim}u)`;
      const two = (e: number): string => `bitcast<u32>(vec2<f16>(${one(e)}, ${one(e + 1)}))`;
      return `${held} = vec4u(${[0, 2, 4, 6].map(two).join(', ')});`;
    };
    return this.each(
      (i) => `
            let column = ${first} + d;
            ${registers}_${name}${i} = vec4u();
            if (r < ${count} && column < ${dim}u) {
              let base = batch * uniforms.${name}Batch + tokenAt(${at} + r, length) * uniforms.${name}Token + head * uniforms.${name}Head;
              ${value(i)}
            }`,
    );
  }

  /** `let name` = the largest magnitude among this lane's items, f32. */
  peak(name: string): string {
    return `let ${name} = ${range(this.items)
      .map((i) => `peakOfEight(held_${this.o.name}${i})`)
      .reduce((a, b) => `max(${a}, ${b})`)};`;
  }

  /** Turns what is held, once, by the factors of `turns`. */
  turn(): string {
    const { name, turns } = this.o;
    if (!turns) return '';
    return range(this.items)
      .map((i) => `held_${name}${i} = ${turns.turned(`held_${name}${i}`, i)};`)
      .join(' ');
  }

  /** Into workgroup memory; `factor`, an f32 expression of the row `r`, scales it. */
  put(factor?: string): string {
    const { name, tile, stride } = this.o;
    const value = (i: number): string => (factor === undefined ? `held_${name}${i}` : `scaledEight(held_${name}${i}, ${factor})`);
    return this.each((i) => `${tile}[r * ${stride}u + d / 8u] = ${value(i)};`);
  }

  /** `body` for each item of this lane: row `r`, element `d` of it. */
  private each(body: (i: number) => string): string {
    const { rows, lanes } = this.o;
    const total = rows * this.across;
    const one = (i: number): string => `
            let item = lane + ${i * lanes}u;
            let r = item / ${this.across}u;
            let d = item % ${this.across}u * 8u;
            ${body(i)}`;
    return range(this.items)
      .map((i) => ((i + 1) * lanes <= total ? `{ ${one(i)} }` : `if (lane + ${i * lanes}u < ${total}u) { ${one(i)} }`))
      .join('\n');
  }
}
