// Rows of a matrix in registers, for kernels on f32: `share` lanes hold `rowsALane` rows together, each lane a slice of every one of
// them. A product with a streamed row then takes a broadcast read of workgroup memory, multiply-adds, and a sum over the lanes.
//
// Slot j of lane l holds row j xor l (modulo rowsALane). The sum that lane l needs, of row l, is then its own part plus slot j of lane
// l xor j: one shuffle a slot and no selection. The way back, from the lane that owns a row to the slots of the others, is the same.
import { range } from '../../kernel/modules.js';
import type { ScoreSpec } from './common.js';
import type { Stream } from './matrix-steps.js';

export type RowTile = {
  lanes: number;
  /** Lanes that share rows: a power of two, `rowsALane` or a multiple of it. */
  share: number;
  rowsALane: number;
  /** Lanes between two that share rows: those of a quarter of a subgroup then read one address. share x spread lanes are a subgroup at most. */
  spread: number;
  /** Streamed rows a step, and at a time. */
  columns: number;
  together: number;
};

/** Rows that a workgroup owns. */
export function ownedRows({ lanes, share, rowsALane }: RowTile): number {
  return (lanes / share) * rowsALane;
}

/** Vectors that a lane holds of a row. */
function sliceItems(dim: number, share: number): number {
  return Math.ceil(dim / 4 / share);
}

/** Bytes of workgroup memory of streamed rows of the given dimensions. */
export function streamedBytes({ columns, share }: RowTile, dims: readonly number[]): number {
  return dims.reduce((sum, dim) => sum + 16 * columns * share * sliceItems(dim, share), 0);
}

const elements = ['x', 'y', 'z', 'w'] as const;

/** The text of a tile. */
export class RowText {
  readonly slots: readonly number[];
  /** Streamed rows that are computed together. */
  readonly columns: readonly number[];

  constructor(private readonly tile: RowTile) {
    this.slots = range(tile.rowsALane);
    this.columns = range(tile.together);
  }

  /** `part`, the lane's number among those that share rows, `firstRow`, the first of these rows in the tile, and `ownRow`, the lane's own. */
  get place(): string {
    const { share, spread, rowsALane } = this.tile;
    return `
      let part = lane / ${spread}u % ${share}u;
      let firstRow = (lane / ${share * spread}u * ${spread}u + lane % ${spread}u) * ${rowsALane}u;
      let ownRow = firstRow + part % ${rowsALane}u;`;
  }

  /** The row of a slot in the tile. */
  row(slot: number): string {
    return `(firstRow + (${slot}u ^ (part % ${this.tile.rowsALane}u)))`;
  }

  items(dim: number): readonly number[] {
    return range(sliceItems(dim, this.tile.share));
  }

  /** Number of the lane's i-th vector in a row. */
  item(i: number): string {
    return `(${i * this.tile.share}u + part)`;
  }

  /** `text` for each register `<name><slot>_<i>` of rows of `dim` elements. */
  each(dim: number, text: (slot: number, i: number) => string): string {
    return this.slots
      .map((j) =>
        this.items(dim)
          .map((i) => text(j, i))
          .join(' '),
      )
      .join('\n');
  }

  /** `to<column>`: the product of the own row with each streamed row from `first` on; the slices `own<slot>_<i>` are given. */
  products(to: string, own: string, streamed: string, dim: number, first: string): string {
    const { share, spread, rowsALane } = this.tile;
    const { slots, columns } = this;
    const sum = (slot: number, column: number): string => `${to}Part${slot}_${column}`;
    const fold = (column: number): string => {
      const others = slots.slice(1).map((j) => `subgroupShuffleXor(${sum(j, column)}, ${j * spread}u)`);
      const steps = range(Math.log2(share / rowsALane)).map(
        (n) => `${to}${column} += subgroupShuffleXor(${to}${column}, ${rowsALane * 2 ** n * spread}u);`,
      );
      return `var ${to}${column} = ${[sum(0, column), ...others].join(' + ')}; ${steps.join(' ')}`;
    };
    const add = (i: number, c: number): string => `{ let other = ${this.streamed(streamed, dim, first, c, i)};
      ${elements.map((e) => slots.map((j) => `${sum(j, c)} = fma(${own}${j}_${i}.${e}, other.${e}, ${sum(j, c)});`).join(' ')).join(' ')} }`;
    return `
      ${columns.map((c) => slots.map((j) => `var ${sum(j, c)} = 0.0;`).join(' ')).join(' ')}
      ${this.items(dim)
        .flatMap((i) => columns.map((c) => add(i, c)))
        .join('\n')}
      ${columns.map(fold).join('\n')}`;
  }

  /** `into<slot>_<i>` += the weight of each row for a streamed row, `weight<column>` on the lane that owns the row, times that row. */
  accumulate(into: string, weight: string, streamed: string, dim: number, first: string): string {
    return this.columns
      .map((c) => {
        const add = (i: number): string => `{ let other = ${this.streamed(streamed, dim, first, c, i)};
          ${this.slots.map((j) => `${into}${j}_${i} = fma(vec4f(w${j}), other, ${into}${j}_${i});`).join(' ')} }`;
        return `{ ${this.slots.map((j) => `let w${j} = ${this.ofSlot(`${weight}${c}`, j)};`).join(' ')} ${this.items(dim).map(add).join('\n')} }`;
      })
      .join('\n');
  }

  /** What the owner of a slot's row holds under this name. */
  ofSlot(name: string, slot: number): string {
    return slot === 0 ? name : `subgroupShuffleXor(${name}, ${slot * this.tile.spread}u)`;
  }

  /** Declares an array of streamed rows. */
  declare(name: string, dim: number): string {
    return `var<workgroup> ${name}: array<vec4f, ${this.tile.columns * this.stride(dim)}>;`;
  }

  /** Streams rows of a binding to the array `name`; software devices, whose texts must stay short, load and write in one loop. */
  stream(spec: ScoreSpec, name: string, binding: string, dim: number): Stream {
    const { columns, lanes } = this.tile;
    const stride = this.stride(dim);
    const count = columns * stride;
    const load = (first: string, end: string, at: string): string =>
      `items_${binding}(${binding}Base, ${first} + (${at}) / ${stride}u, ${end}, (${at}) % ${stride}u)`;
    if (spec.opaque)
      return {
        declare: () => '',
        fetch: () => '',
        put: (first, end) =>
          `for (var at = lane; at < ${count}u * uniforms.one; at += ${lanes}u) { ${name}[at] = ${load(first, end, 'at')}; }`,
      };
    const each = (text: (register: string, at: string) => string): string =>
      range(Math.ceil(count / lanes))
        .map((i) => {
          const one = text(`${name}Next${i}`, `lane + ${i * lanes}u`);
          const left = count - i * lanes;
          return left < lanes ? `if (lane < ${left}u) { ${one} }` : one;
        })
        .join('\n');
    return {
      declare: () =>
        range(Math.ceil(count / lanes))
          .map((i) => `var ${name}Next${i} = vec4f();`)
          .join(' '),
      fetch: (first, end) => each((register, at) => `${register} = ${load(first, end, at)};`),
      put: () => each((register, at) => `${name}[${at}] = ${register};`),
    };
  }

  private stride(dim: number): number {
    return this.tile.share * sliceItems(dim, this.tile.share);
  }

  private streamed(name: string, dim: number, first: string, column: number, i: number): string {
    return `${name}[(${first} + ${column}u) * ${this.stride(dim)}u + ${this.item(i)}]`;
  }
}
