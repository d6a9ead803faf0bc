// Scores and weights of the attention kernels on fragments. Fragments have no elements, so scores go to workgroup memory, where
// lanes turn them into weights, and weights come back as fragments. Each subgroup has a slice of its own.
import type { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import { bound, laneQuad, type MatrixSpec, padded, Region, regionBytes } from './matrix-memory.js';

/** Bytes of workgroup memory of the slices of all subgroups. */
export function scratchBytes(tile: { subgroups: number; blocks: number; chunk: number; barriers: boolean }): number {
  const rows = tile.subgroups * 16 * (tile.barriers ? tile.blocks : 1);
  return regionBytes('scores', rows, tile.chunk) + regionBytes('weights', rows, tile.chunk);
}

/** Left operands: fragments `<name><block>_<k>` in registers, or rows of a region (`owned` rows of the workgroup). */
export type LeftOperand = string | Region;

/** The text of products, weights and outputs of a tile. */
export class Scratch {
  readonly scores: Region;
  readonly weights: Region;
  readonly blocks: readonly number[];
  /** Fours of columns that a lane takes of each of its rows. */
  readonly units: readonly number[];

  constructor(
    private readonly f: Fragments,
    private readonly spec: MatrixSpec,
  ) {
    const rows = spec.subgroups * 16 * (spec.barriers ? spec.blocks : 1);
    this.scores = new Region(f, 'scores', 'scores', rows, spec.chunk);
    this.weights = new Region(f, 'weights', 'weights', rows, spec.chunk);
    this.blocks = range(spec.blocks);
    this.units = range(spec.chunk / 8);
  }

  declare(): string {
    return `${this.scores.declare()}\n${this.weights.declare()}`;
  }

  /** Between what lanes of a subgroup write and what others of them read. */
  get sync(): string {
    return this.spec.barriers ? 'workgroupBarrier();' : '';
  }

  /** `each` block's text; one after the other in a slice that they share, else all of `first`, then all of `then`. */
  perBlock(first: (block: number) => string, then: (block: number) => string): string {
    if (this.spec.barriers) return `${this.blocks.map(first).join('\n')} ${this.sync} ${this.blocks.map(then).join('\n')}`;
    return this.blocks.map((m) => `${first(m)} ${then(m)}`).join('\n');
  }

  /** First row of a block in the slices. */
  slice(block: number): string {
    return this.spec.barriers && this.spec.blocks > 1 ? `(subgroup * ${this.spec.blocks}u + ${block}u) * 16u` : 'subgroup * 16u';
  }

  /** This lane's row of a block in the slices. */
  laneRow(block: number): string {
    return `${this.slice(block)} + row`;
  }

  /** Accumulators `s<block>_<j>` = rows of `left` times rows of `right` from `first` on, and `after` them, in a scope of their own. */
  product(left: LeftOperand, right: Region, dim: number, first: number, after: string): string {
    const { f, blocks, spec } = this;
    const fragments = range(spec.chunk / f.N);
    const step = (column: string, k: string): string => `
      ${typeof left === 'string' ? '' : blocks.map((m) => f.loadLeft(`left${m}`, left.name, left.at(ownedRow(spec, m), column), left.rowStride)).join('\n')}
      ${fragments
        .map(
          (j) => `{ ${f.loadRight('right', right.name, right.at(`${first + j * f.N}u`, column), right.rowStride, 'column')}
        ${blocks.map((m) => f.multiplyAdd(`s${m}_${j}`, typeof left === 'string' ? `${left}${m}_${k}` : `left${m}`, 'right')).join(' ')} }`,
        )
        .join('\n')}`;
    return `{
      ${blocks.map((m) => fragments.map((j) => f.zero(`s${m}_${j}`)).join(' ')).join('\n')}
      ${overDepth(f, padded(dim), spec.opaque, step)}
      ${after} }`;
  }

  /** Writes a block's accumulators of `product` to its slice. */
  storeScores(block: number): string {
    const { f, scores, spec } = this;
    return range(spec.chunk / f.N)
      .map((j) => f.store(`s${block}_${j}`, scores.name, scores.at(this.slice(block), `${j * f.N}u`), scores.rowStride))
      .join('\n');
  }

  /** Reads unit `unit` of this lane's scores. */
  score(block: number, unit: number | string): string {
    return this.scores.read(this.laneRow(block), laneQuad(unit));
  }

  /** `body` changes `four`, the scores of columns `column` to `column + 3`, in memory; a loop, for long texts. */
  overScores(block: number, body: string): string {
    return `
      for (var fours = 0u; fours < ${bound(this.spec, this.units.length)}; fours++) {
        let column = 8u * fours + 4u * pair;
        var four = ${this.score(block, 'fours')};
        ${body}
        ${this.scores.write(this.laneRow(block), laneQuad('fours'), 'four')}
      }`;
  }

  /** Writes this lane's weights of a unit. */
  weight(block: number, unit: number, value: string): string {
    return this.weights.write(this.laneRow(block), laneQuad(unit), value);
  }

  /** Loads a block's weights as fragments, where they stay in registers. */
  loadWeights(block: number): string {
    const { f, spec } = this;
    return spec.barriers
      ? ''
      : range(spec.chunk / f.K)
          .map((k) => f.loadLeft(`w${block}_${k}`, 'weights', this.weights.at(this.slice(block), `${k * f.K}u`), this.weights.rowStride))
          .join('\n');
  }

  /** Accumulators `<name><block>_<j>` += weights times rows of `right` from `first` on. */
  accumulate(name: string, right: Region, dim: number, first: number): string {
    const { f, spec, blocks, weights } = this;
    return overDepth(
      f,
      spec.chunk,
      spec.opaque,
      (column, k) => `
      ${spec.barriers ? blocks.map((m) => f.loadLeft(`held${m}`, 'weights', weights.at(this.slice(m), column), weights.rowStride)).join('\n') : ''}
      ${range(padded(dim) / f.N)
        .map(
          (j) => `{ ${f.loadRight('right', right.name, right.at(`${first}u + ${column}`, `${j * f.N}u`), right.rowStride)}
        ${blocks.map((m) => f.multiplyAdd(`${name}${m}_${j}`, spec.barriers ? `held${m}` : `w${m}_${k}`, 'right')).join(' ')} }`,
        )
        .join('\n')}`,
    );
  }

  /** Declares accumulators `<name><block>_<j>` of `dim` columns, all zero. */
  declareOutput(name: string, dim: number): string {
    return this.blocks
      .map((m) =>
        range(padded(dim) / this.f.N)
          .map((j) => this.f.zero(`${name}${m}_${j}`))
          .join(' '),
      )
      .join('\n');
  }

  /** Each row of an output times `factor(block)`, through the slices, in bands of `chunk` columns. */
  scaleRows(name: string, dim: number, factor: (block: number) => string): string {
    const { f, scores } = this;
    return this.blocks
      .map((m) =>
        this.bands(dim)
          .map(
            ({ fragments, units }) => `
          ${this.toSlice(name, m, fragments)} ${this.sync}
          ${this.overUnits(units, (u) => scores.write(this.laneRow(m), laneQuad(u), `${this.score(m, u)} * ${factor(m)}`))} ${this.sync}
          ${fragments.map((j) => f.loadResult(`${name}${m}_${j}`, scores.name, this.bandPlace(m, j), scores.rowStride)).join('\n')} ${this.sync}`,
          )
          .join('\n'),
      )
      .join('\n');
  }

  /** Stores an output: element d of this lane's row of a block to `at(block) + d` of the binding, where `valid(block)`. */
  storeOutput(
    name: string,
    dim: number,
    target: {
      binding: string;
      vector: boolean;
      /** First element of the row, and elements of it from there on that exist. */
      at: (block: number) => string;
      limit: string;
      valid: (block: number) => string;
      factor: (block: number) => string;
    },
  ): string {
    const { binding, vector, at, limit, valid, factor } = target;
    const put = (m: number, column: string, value: string): string =>
      vector
        ? `if (${column} < ${limit}) { store_${binding}((${at(m)} + ${column}) / 4u, ${value}); }`
        : `{ let four = ${value}; ${range(4)
            .map((e) => `if (${column} + ${e}u < ${limit}) { store_${binding}(${at(m)} + ${column} + ${e}u, four[${e}]); }`)
            .join(' ')} }`;
    return this.blocks
      .map((m) =>
        this.bands(dim)
          .map(
            ({ first, fragments, units }) => `
          ${this.toSlice(name, m, fragments)} ${this.sync}
          if (${valid(m)}) { ${this.overUnits(units, (u) => put(m, `(${first}u + 8u * ${u} + 4u * pair)`, `${this.score(m, u)} * (${factor(m)})`))} } ${this.sync}`,
          )
          .join('\n'),
      )
      .join('\n');
  }

  private bands(dim: number): { first: number; fragments: number[]; units: number }[] {
    const { chunk: columns } = this.spec;
    const width = padded(dim);
    return range(Math.ceil(width / columns)).map((band) => {
      const first = band * columns;
      const fragments = range(width / this.f.N).filter((j) => Math.floor((j * this.f.N) / columns) === band);
      return { first, fragments, units: Math.min(columns, width - first) / 8 };
    });
  }

  /** `text` of each unit: unrolled on hardware, a loop under emulation. */
  private overUnits(units: number, text: (unit: string) => string): string {
    if (this.f.hardware)
      return range(units)
        .map((u) => text(`${u}u`))
        .join('\n');
    return `for (var fours = 0u; fours < ${bound(this.spec, units)}; fours++) { ${text('fours')} }`;
  }

  private bandPlace(block: number, j: number): string {
    return this.scores.at(this.slice(block), `${(j * this.f.N) % this.spec.chunk}u`);
  }

  private toSlice(name: string, block: number, fragments: readonly number[]): string {
    return fragments
      .map((j) => this.f.store(`${name}${block}_${j}`, this.scores.name, this.bandPlace(block, j), this.scores.rowStride))
      .join('\n');
  }
}

/** First owned row of a block of this subgroup. */
export function ownedRow(spec: MatrixSpec, block: number): string {
  return `(subgroup * ${spec.blocks}u + ${block}u) * 16u`;
}

/** A sum over `depth` columns: unrolled on hardware; a loop under emulation, whose texts must stay short. `step` gets the first one. */
function overDepth(f: Fragments, depth: number, opaque: boolean, step: (first: string, index: string) => string): string {
  const steps = depth / f.K;
  if (f.hardware)
    return range(steps)
      .map((k) => `{ ${step(`${k * f.K}u`, String(k))} }`)
      .join('\n');
  return `for (var depthStep = 0u; depthStep < ${steps}u${opaque ? ' * uniforms.one' : ''}; depthStep++) { ${step(`depthStep * ${f.K}u`, 'depthStep')} }`;
}
