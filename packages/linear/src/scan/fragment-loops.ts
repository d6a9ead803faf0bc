import { fragmentLanes, type Fragments, range } from '@heed/core/~internal';

/** A number known to the generator, or an expression of the kernel. */
export type Index = number | string;

/** An index as a u32 expression. */
export function u32(i: Index): string {
  return typeof i === 'number' ? `${i}u` : `(${i})`;
}

export function plus(a: Index, b: Index): Index {
  return typeof a === 'number' && typeof b === 'number' ? a + b : `${u32(a)} + ${u32(b)}`;
}

export function times(a: Index, n: number): Index {
  return typeof a === 'number' ? a * n : `${u32(a)} * ${n}u`;
}

/**
 * Grids of accumulators and the loops over them. On hardware both are unrolled into named variables: fragments do not live in
 * arrays. The emulation keeps arrays and loops whose bounds a compiler cannot see: unrolled, one kernel takes a software driver
 * half a minute.
 */
export class FragmentLoops {
  private depth = 0;

  constructor(
    private readonly fragments: Fragments,
    private readonly columns: number,
  ) {}

  /** Declares rows x columns accumulators of zeros. */
  declare(name: string, rows: number): string {
    const { hardware, M, N } = this.fragments;
    if (!hardware) return `var ${name} = array<array<f32, ${(M * N) / fragmentLanes}>, ${rows * this.columns}>();`;
    return range(rows * this.columns)
      .map((i) => this.fragments.zero(`${name}_${i}`))
      .join('\n');
  }

  /** The accumulator at a row and column of a grid. */
  at(name: string, row: Index, column: number): string {
    const index = plus(times(row, this.columns), column);
    return this.fragments.hardware ? `${name}_${index}` : `${name}[${index}]`;
  }

  /** `body` for each index from `from` up to `to`, exclusive. */
  each(from: Index, to: Index, body: (i: Index) => string): string {
    if (typeof from === 'number' && typeof to === 'number' && (this.fragments.hardware || to - from <= 1))
      return range(to - from)
        .map((i) => `{ ${body(from + i)} }`)
        .join('\n');
    const name = `loop${this.depth++}`;
    const bound = typeof to === 'number' ? `min(${to}u, ${to - 1}u + groups.x)` : to;
    const text = `for (var ${name} = ${u32(from)}; ${name} < ${bound}; ${name}++) { ${body(name)} }`;
    this.depth--;
    return text;
  }

  /** `body` for each own column; always unrolled, so that their operands have names. */
  columnsOf(body: (column: number) => string): string {
    return range(this.columns).map(body).join('\n');
  }
}
