// The register tile that all f32 attention kernels share. A workgroup owns `rows` rows (queries, or keys in the dk/dv
// sweep) and streams `columns` rows of the other side a step. Lane (tx, ty) holds rows ty, ty + lanesY, .. and columns
// (g lanesX + tx) width + e. Operands are staged in workgroup memory as items of `width` elements: vec4f on hardware;
// single floats on software devices, whose compilers take time with the square of the number of memory accesses.
// Accumulators are named registers `s<row>_<column>`: indexed arrays fall out of registers.
import { range } from '../../kernel/modules.js';

/** The tile of a kernel, as its spec carries it. */
export type TileSpec = {
  /** Rows a workgroup owns; a multiple of lanesY. */
  rows: number;
  /** Streamed rows a step; a multiple of width x lanesX. */
  columns: number;
  lanesX: number;
  lanesY: number;
  /** Elements an item: 4 or 1. */
  width: 1 | 4;
  /** Elements of the head dimension that are staged at once; a multiple of width. */
  depth: number;
  /** Streamed rows that are staged at once for an accumulation; a multiple of width that divides columns. */
  slab: number;
};

/** Head dimensions that a kernel contracts over and accumulates, the largest of each. */
export interface TileDims {
  contract: number;
  accumulate: number;
}

/** Bytes of workgroup memory of a tile. */
export function tileBytes(tile: TileSpec, dims: TileDims): number {
  return 4 * tile.width * (stagedItems(tile, dims) + weightItems(tile));
}

function lanesOf(tile: TileSpec): number {
  return tile.lanesX * tile.lanesY;
}

function depthItems(tile: TileSpec, dim: number): number {
  return Math.min(tile.depth, Math.ceil(dim / tile.width) * tile.width) / tile.width;
}

/** Accumulator items of an output row of `dim` elements that a lane holds. */
function outputItems(tile: TileSpec, dim: number): number {
  return Math.ceil(Math.ceil(dim / tile.width) / tile.lanesX);
}

/** Rounded up so that the bytes are a multiple of 16. */
function padItems(tile: TileSpec, items: number): number {
  return tile.width === 4 ? items : Math.ceil(items / 4) * 4;
}

function stagedItems(tile: TileSpec, dims: TileDims): number {
  const contract = (tile.rows + tile.columns) * (depthItems(tile, dims.contract) | 1);
  return padItems(tile, Math.max(contract, tile.slab * outputItems(tile, dims.accumulate) * tile.lanesX));
}

function weightItems(tile: TileSpec): number {
  const exchange = lanesOf(tile) * exchangeItems(tile);
  return padItems(tile, Math.max((tile.rows * tile.columns) / tile.width, exchange));
}

function exchangeItems(tile: TileSpec): number {
  return Math.ceil(tile.rows / tile.lanesY / tile.width);
}

/** One operand of a product: gives the text of an item, elements width x item .. of a row; zeros where there are none. */
export type ItemLoader = (row: string, item: string) => string;

/** Generates the pieces of a tile kernel's text. */
export class TileText {
  readonly lanes: number;
  readonly rowsPerLane: number;
  readonly columnsPerLane: number;
  /** WGSL type of an item. */
  readonly item: string;
  private readonly lanesX: number;
  private readonly width: 1 | 4;

  /** @param opaque loop bounds are hidden from the compiler */
  constructor(
    readonly tile: TileSpec,
    private readonly dims: TileDims,
    readonly opaque = false,
  ) {
    this.lanes = lanesOf(tile);
    this.rowsPerLane = tile.rows / tile.lanesY;
    this.columnsPerLane = tile.columns / tile.lanesX;
    this.item = tile.width === 4 ? 'vec4f' : 'f32';
    this.lanesX = tile.lanesX;
    this.width = tile.width;
  }

  /** Workgroup variables: `staged` for operands, `weights` for products that are multiplied again, and for exchanges. */
  variables(): string {
    return `
      var<workgroup> staged: array<${this.item}, ${stagedItems(this.tile, this.dims)}>;
      var<workgroup> weights: array<${this.item}, ${weightItems(this.tile)}>;`;
  }

  /** A loop's bound. Software drivers unroll what they can bound, and then compile for most of a minute. */
  private bound(n: number): string {
    return this.opaque ? `${n}u * uniforms.one` : `${n}u`;
  }

  /** Names of this lane: `tx`, `ty`. */
  lanePosition(): string {
    return `let tx = lane % ${this.lanesX}u; let ty = lane / ${this.lanesX}u;`;
  }

  rowNumbers(): number[] {
    return range(this.rowsPerLane);
  }

  columnNumbers(): number[] {
    return range(this.columnsPerLane);
  }

  /** Row i of this lane, in the tile. */
  row(i: number): string {
    return i === 0 ? 'ty' : `(ty + ${i * this.tile.lanesY}u)`;
  }

  /** Column c of this lane, in the tile. */
  column(c: number): string {
    const group = Math.floor(c / this.width);
    const first = group === 0 ? 'tx' : `(${group * this.lanesX}u + tx)`;
    return this.width === 1 ? first : `(${first} * ${this.width}u + ${c % this.width}u)`;
  }

  /** Element e of an item. */
  part(item: string, e: number): string {
    return this.width === 1 ? item : `${item}.${'xyzw'[e]}`;
  }

  /** An item of `width` values. */
  pack(value: (e: number) => string): string {
    return this.width === 1 ? value(0) : `vec4f(${range(4).map(value).join(', ')})`;
  }

  /** `acc<i>_<c>` = sum over the elements of row i times column c. Begins with a barrier. */
  contract(acc: string, dim: number, row: ItemLoader, column: ItemLoader): string {
    const { tile, lanes, width, lanesX } = this;
    const items = depthItems(tile, dim);
    const chunks = Math.ceil(Math.ceil(dim / width) / items);
    const stride = items | 1;
    const columnsAt = tile.rows * stride;
    // a lane's columns lie a stride of lanesX apart, so that neighbouring lanes read neighbouring rows
    const slot = width === 1 ? 'n' : `((n >> 2u) / ${lanesX}u * 4u + (n & 3u)) * ${lanesX}u + (n >> 2u) % ${lanesX}u`;
    const products = this.columnNumbers().map((c) => {
      const sums = this.rowNumbers().map((i) => {
        const terms = range(width).map((e) => `${this.part(`a${i}`, e)} * ${this.part('b', e)}`);
        return `${acc}${i}_${c} = ${acc}${i}_${c} + ${terms.join(' + ')};`;
      });
      return `{ let b = staged[${columnsAt + c * lanesX * stride}u + tx * ${stride}u + d]; ${sums.join(' ')} }`;
    });
    return `
      ${this.rowNumbers()
        .map((i) =>
          this.columnNumbers()
            .map((c) => `var ${acc}${i}_${c} = 0.0;`)
            .join(' '),
        )
        .join('\n')}
      for (var chunk = 0u; chunk < ${this.bound(chunks)}; chunk++) {
        workgroupBarrier();
        for (var at = lane; at < ${this.bound(tile.rows * items)}; at += ${lanes}u) {
          let n = at / ${items}u; let d = at % ${items}u;
          staged[n * ${stride}u + d] = ${row('n', `chunk * ${items}u + d`)};
        }
        for (var at = lane; at < ${this.bound(tile.columns * items)}; at += ${lanes}u) {
          let n = at / ${items}u; let d = at % ${items}u;
          staged[${columnsAt}u + (${slot}) * ${stride}u + d] = ${column('n', `chunk * ${items}u + d`)};
        }
        workgroupBarrier();
        for (var d = 0u; d < ${this.bound(items)}; d++) {
          ${this.rowNumbers()
            .map((i) => `let a${i} = staged[${this.row(i)} * ${stride}u + d];`)
            .join(' ')}
          ${products.join('\n')}
        }
      }`;
  }

  /** A loop over the lane's pairs: `pair` (row by row), `pairRow` and `pairColumn` in the tile. At most 32 pairs a lane. */
  pairLoop(body: string): string {
    const { tile, lanesX, width, rowsPerLane, columnsPerLane } = this;
    if (rowsPerLane * columnsPerLane > 32) throw new Error(`attention: ${rowsPerLane} x ${columnsPerLane} pairs a lane do not fit a word`);
    const number = `pair % ${columnsPerLane}u`;
    const column = width === 1 ? `(${number}) * ${lanesX}u + tx` : `((${number}) / 4u * ${lanesX}u + tx) * 4u + (${number}) % 4u`;
    return `
      for (var pair = 0u; pair < ${this.bound(rowsPerLane * columnsPerLane)}; pair++) {
        let pairRow = ty + pair / ${columnsPerLane}u * ${tile.lanesY}u;
        let pairColumn = ${column};
        ${body}
      }`;
  }

  /** `var <name>`: the pair's bit says that `test(row, column)` holds; the test is spelt once, in a loop. */
  pairBits(name: string, test: (row: string, column: string) => string): string {
    return `var ${name} = 0u; ${this.pairLoop(`if (${test('pairRow', 'pairColumn')}) { ${name} |= 1u << pair; }`)}`;
  }

  /** Whether the pair's bit is set. */
  hasBit(name: string, i: number, c: number): string {
    return `(${name} & ${2 ** (i * this.columnsPerLane + c)}u) != 0u`;
  }

  /** Bits of all pairs of row i. */
  bitsOfRow(i: number): string {
    return this.columnNumbers().reduce((bits, c) => bits + 2 ** (i * this.columnsPerLane + c), 0) + 'u';
  }

  /** Bits of all pairs of column c. */
  bitsOfColumn(c: number): string {
    return this.rowNumbers().reduce((bits, i) => bits + 2 ** (i * this.columnsPerLane + c), 0) + 'u';
  }

  /** Declares the accumulators of an output of `dim` elements a row. */
  declareOutput(acc: string, dim: number): string {
    return this.rowNumbers()
      .map((i) =>
        range(outputItems(this.tile, dim))
          .map((j) => `var ${acc}${i}_${j} = ${this.item}();`)
          .join(' '),
      )
      .join('\n');
  }

  /** Writes `name<i>_<c>` to workgroup memory; a barrier must lie before (the last readers) and after. */
  storeWeights(name: string): string {
    const { tile, lanesX, width } = this;
    const perRow = tile.columns / width;
    if (this.opaque && width === 1) {
      const pairs = this.rowNumbers().flatMap((i) => this.columnNumbers().map((c) => `${name}${i}_${c}`));
      return this.pairLoop(`weights[pairRow * ${perRow}u + pairColumn] = ${pickText(pairs, 'pair')};`);
    }
    return this.rowNumbers()
      .map((i) =>
        range(this.columnsPerLane / width)
          .map((g) => `weights[${this.row(i)} * ${perRow}u + ${g * lanesX}u + tx] = ${this.pack((e) => `${name}${i}_${g * width + e}`)};`)
          .join(' '),
      )
      .join('\n');
  }

  /** `var name<c>: type` for each column of the lane, from the text of one; in a loop on software devices. */
  columnValues(name: string, type: string, value: (column: string) => string): string {
    const columns = this.columnNumbers();
    if (!this.opaque) return columns.map((c) => `var ${name}${c} = ${value(this.column(c))};`).join('\n');
    const { lanesX, width } = this;
    const column = width === 1 ? `(n * ${lanesX}u + tx)` : `((n / 4u * ${lanesX}u + tx) * 4u + n % 4u)`;
    return `
      ${columns.map((c) => `var ${name}${c}: ${type};`).join(' ')}
      for (var n = 0u; n < ${this.bound(columns.length)}; n++) {
        let one = ${value(column)};
        ${columns.map((c) => `${name}${c} = select(${name}${c}, one, n == ${c}u);`).join(' ')}
      }`;
  }

  /** `acc<i>_<j>` += sum over the columns of weight times the streamed row. Begins with a barrier. */
  accumulate(acc: string, dim: number, column: ItemLoader): string {
    const { tile, lanes, lanesX, width } = this;
    const items = outputItems(tile, dim);
    const stride = items * lanesX;
    const perRow = tile.columns / width;
    const terms = range(width).flatMap((e) =>
      range(items).map((j) => {
        const sums = this.rowNumbers().map((i) => `${acc}${i}_${j} = ${acc}${i}_${j} + ${this.part(`w${i}`, e)} * v;`);
        return `{ let v = staged[(n * ${width}u + ${e}u) * ${stride}u + ${j * lanesX}u + tx]; ${sums.join(' ')} }`;
      }),
    );
    return `
      for (var slab = 0u; slab < ${this.bound(tile.columns / tile.slab)}; slab++) {
        workgroupBarrier();
        for (var at = lane; at < ${this.bound(tile.slab * stride)}; at += ${lanes}u) {
          let n = slab * ${tile.slab}u + at / ${stride}u; let d = at % ${stride}u;
          staged[at] = ${column('n', 'd')};
        }
        workgroupBarrier();
        for (var n = 0u; n < ${this.bound(tile.slab / width)}; n++) {
          ${this.rowNumbers()
            .map((i) => `let w${i} = weights[${this.row(i)} * ${perRow}u + slab * ${tile.slab / width}u + n];`)
            .join(' ')}
          ${terms.join('\n')}
        }
      }`;
  }

  /**
   * Combines `name<i>` over the lanes that share a row: `max` or `+`. Within a subgroup by shuffles where `shuffles` says
   * that a row's lanes lie in one, else through workgroup memory (begins and ends with a barrier).
   */
  reduceRows(name: string, operator: 'max' | '+', shuffles: boolean): string {
    const combine = (a: string, b: string): string => (operator === 'max' ? `max(${a}, ${b})` : `${a} + ${b}`);
    const { lanesX, width } = this;
    if (lanesX === 1) return '';
    if (shuffles) {
      const steps: string[] = [];
      for (let mask = 1; mask < lanesX; mask *= 2)
        steps.push(
          ...this.rowNumbers().map((i) => `${name}${i} = ${combine(`${name}${i}`, `subgroupShuffleXor(${name}${i}, ${mask}u)`)};`),
        );
      return steps.join('\n');
    }
    const groups = exchangeItems(this.tile);
    const at = (x: string, g: number): string => `weights[(ty * ${lanesX}u + ${x}) * ${groups}u + ${g}u]`;
    const member = (g: number, e: number): string => (g * width + e < this.rowsPerLane ? `${name}${g * width + e}` : '0.0');
    return `
      workgroupBarrier();
      ${range(groups)
        .map((g) => `${at('tx', g)} = ${this.pack((e) => member(g, e))};`)
        .join('\n')}
      workgroupBarrier();
      ${range(groups)
        .map((g) => `var all${g} = ${at('0u', g)};`)
        .join(' ')}
      for (var x = 1u; x < ${this.bound(lanesX)}; x++) { ${range(groups)
        .map((g) => `all${g} = ${combine(`all${g}`, at('x', g))};`)
        .join(' ')} }
      ${this.rowNumbers()
        .map((i) => `${name}${i} = ${this.part(`all${Math.floor(i / width)}`, i % width)};`)
        .join(' ')}
      workgroupBarrier();`;
  }

  /** Text for each accumulator (row i, item j of the lane, item of the row) of an output of `dim` elements. */
  eachOutput(dim: number, text: (i: number, j: number, item: string) => string): string {
    const items = Math.ceil(dim / this.width);
    return range(outputItems(this.tile, dim))
      .map((j) => {
        const item = j === 0 ? 'tx' : `(tx + ${j * this.lanesX}u)`;
        const body = this.rowNumbers()
          .map((i) => text(i, j, item))
          .join('\n');
        return (j + 1) * this.lanesX <= items ? body : `if (${item} < ${items}u) { ${body} }`;
      })
      .join('\n');
  }

  /**
   * Stores an item of an output row: `at` is the row's first element. A binding of 4 elements an item takes it whole, one of
   * single elements as many as lie inside `dim`.
   */
  storeItem(binding: string, vector: boolean, at: string, dim: number, item: string, value: string): string {
    if (vector) return `store_${binding}((${at}) / 4u + ${item}, ${value});`;
    if (this.width === 1) return `store_${binding}(${at} + ${item}, ${value});`;
    const single = (e: number): string =>
      `if (${item} * 4u + ${e}u < ${dim}u) { store_${binding}(${at} + ${item} * 4u + ${e}u, value.${'xyzw'[e]}); }`;
    return `{ let value = ${value}; ${range(4).map(single).join(' ')} }`;
  }
}

/**
 * `fn items_<binding>(base, row, end, item)`: `width` elements of row `row` of a binding whose row stride is
 * `uniforms.<binding>Row` (in items of the binding); zeros from row `end` on and beyond `dim`.
 * @param vector the binding is loaded by vec4
 */
export function rowLoader(binding: string, dim: number, width: number, vector: boolean, address = `row * uniforms.${binding}Row`): string {
  const items = Math.ceil(dim / width);
  const type = width === 4 ? 'vec4f' : 'f32';
  const load =
    width === 1 || vector
      ? `return load_${binding}(base + ${address} + item);`
      : `let at = base + ${address} + item * 4u;
       var value = vec4f(load_${binding}(at), 0.0, 0.0, 0.0);
       ${range(3)
         .map((e) => `if (item * 4u + ${e + 1}u < ${dim}u) { value.${'yzw'[e]} = load_${binding}(at + ${e + 1}u); }`)
         .join('\n')}
       return value;`;
  return `
    fn items_${binding}(base: u32, row: u32, end: u32, item: u32) -> ${type} {
      if (row >= end || item >= ${items}u) { return ${type}(); }
      ${load}
    }`;
}

/** The one of `names` that `index` says. */
export function pickText(names: readonly string[], index: string): string {
  return names.slice(1).reduce((text, name, n) => `select(${text}, ${name}, ${index} == ${n + 1}u)`, names[0] ?? '');
}
