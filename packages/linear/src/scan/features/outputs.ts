// Outputs of a feature map as products of fragments: a tile of queries meets phi(Q) S, S the f16 state before its segment, and the weights of the
// segment's keys up to its own, (weights of Q K^T, masked) [V, 1]; both go into the same f32 sums, whose last column divides.
// tile    32 rows a subgroup; features of the state and keys are staged `staged` at a time; weights and features pass through a slice of
//         workgroup memory that each subgroup has for itself
// bytes   reads q, writes out once; reads a state, and on average half a segment's k and v, once a tile of queries
// limits  f16 operands, f32 sums; a row is scaled by a power of two that keeps its features and weights in range
// source  Arora et al. 2024 (arXiv 2402.18668), section 4; Katharopoulos et al. 2020; chunks as in Qin et al. 2024, section 3.2
import { type KernelContext, range } from '@heed/core/~internal';
import { FragmentLoops, type Index, plus, times, u32 } from '../fragment-loops.js';
import { vectorStore } from '../text.js';
import { type FeatureMap, paddedFeatures } from './map.js';
import { OutputStaging, type OutputsSpec } from './output-staging.js';
import { eightText, lengthText, rangeText, rowOf } from './text.js';
import { scoreStride, weightsAt, weightStride } from './tile.js';

export function outputsText(map: FeatureMap, s: OutputsSpec, context: KernelContext): string {
  return new OutputsText(map, s, context).kernel();
}

class OutputsText extends OutputStaging {
  kernel(): string {
    const { map, s, f, loops, rows, depth } = this;
    const { staged } = s;
    const units = range(map.weight ? 2 * depth : map.dim / 8);
    return `
    ${rangeText}
    ${eightText('q', s.loadQ, map.dim)}
    ${s.causal ? `${eightText('k', s.loadK, map.dim)} ${eightText('v', s.loadV, s.valueDim)}` : ''}
    ${lengthText(s.lengths)}
    ${vectorStore('out', s.outWidth, s.valueDim)}
    ${map.functions}
    var<workgroup> slices: array<vec4u, ${s.subgroups * this.at.slice}>;
    ${s.causal ? `var<workgroup> keys: array<vec4u, ${staged * this.keyStride}>;` : ''}
    var<workgroup> values: array<vec4u, ${staged * this.valueStride}>;
    ${s.barriers && (s.causal || !map.weight) ? `var<workgroup> queries: array<vec4u, ${rows * this.keyStride}>;` : ''}
    var<workgroup> factors: array<f32, ${rows}>;
    ${s.initial ? '' : 'var<workgroup> peaks: array<atomic<u32>, 4>;'}
    ${f.entry(
      s.subgroups,
      `
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let columnTile = index % uniforms.columnTiles;
      let columns = columnTile * ${s.columns}u;
      let head = index / uniforms.columnTiles % uniforms.heads;
      let tileAt = index / (uniforms.columnTiles * uniforms.heads);
      let segment = tileAt / uniforms.rowTiles % uniforms.segments;
      let batch = tileAt / (uniforms.rowTiles * uniforms.segments);
      let length = lengthOf(batch);
      let first = segment * uniforms.segmentTokens;
      let rowStart = first + tileAt % uniforms.rowTiles * ${rows}u;
      let rowEnd = min(min(first + uniforms.segmentTokens, rowStart + ${rows}u), uniforms.tokens);
      if (rowStart >= rowEnd) { return; }
      let keyEnd = min(rowEnd, length);
      let ownFirst = rowStart + subgroup * 32u;
      let slice = subgroup * ${this.at.slice}u;
      let row = subgroupLane % 16u;
      let pair = subgroupLane / 16u;
      ${
        s.initial
          ? `
      let stateAt = ((batch * uniforms.heads + head) * uniforms.stateSegments + min(segment, uniforms.stateSegments - 1u)) * uniforms.columnTiles + columnTile;
      let down = load_downs(2u * stateAt);
      ${s.causal ? 'let peak = load_downs(2u * stateAt + 1u);' : ''}`
          : ''
      }
      var step = 0u;
      let featureSteps = ${s.initial ? `${Math.ceil(paddedFeatures(map) / staged)}u` : '0u'};
      let steps = featureSteps${s.causal ? ` + (max(keyEnd, first) - first + ${staged - 1}u) / ${staged}u` : ''};
      ${this.declareHeld()}
      ${s.initial ? this.fetchState() : this.fetchKeys()}
      ${s.initial ? '' : this.keyPeak()}
      ${units.map((u) => `var row${u} = vec4u();`).join(' ')}
      if (ownFirst + subgroupLane < rowEnd) { let base = ${rowOf('q', 'ownFirst + subgroupLane')}; ${units.map((u) => `row${u} = eight_q(base, ${8 * u}u);`).join(' ')} }
      ${map.queryRow()}
      ${s.initial ? '' : `let down = ${map.mostDown('peak')};`}
      let factor = ${s.causal && map.weightBound ? `fitTo(max(most, down * ${map.weightBound('peak')}), 15)` : 'fitTo(most, 8)'};
      factors[lane] = factor * down;
      ${loops.declare('o', 2)}
      ${this.queryFragments(units)}
      ${this.sync}
      ${s.initial ? this.featureSteps() : ''}
      ${
        s.causal
          ? `
      ${map.weight ? '' : `let keysUp = down * ${map.unscaled('0u', 'peak')};`}
      while (step < steps) { ${this.step(this.keyStep(), this.fetchKeys(), this.putKeys())} }`
          : ''
      }
      ${this.finish()}`,
      { lanesInOrder: true },
    )}`;
  }

  /** What was fetched is put into workgroup memory, the next is fetched, and `body` computes. */
  private step(body: string, fetch: string, put = ''): string {
    return `
        ${this.putValues()}
        ${put}
        workgroupBarrier();
        step++;
        ${fetch}
        ${body}
        workgroupBarrier();`;
  }

  /** Features of queries times rows of the state: made step by step, or once, where keys meet them, too. */
  private featureSteps(): string {
    const { map, s, f, loops, sync } = this;
    const perStep = s.staged / 16;
    const following = `if (step < featureSteps) { ${this.fetchState()} } ${s.causal ? `else ${this.fetchKeys()}` : ''}`;
    if (map.weight)
      return `while (step < featureSteps) { ${this.step(
        loops.each(
          0,
          perStep,
          (c) => `
          ${this.queryFeatures(`((step - 1u) * ${perStep}u + ${u32(c)})`)}
          ${sync}
          ${this.accumulate(c, (m) => f.loadLeft('part', 'slices', `slice + ${u32(times(m, 16 * weightStride))}`, `${weightStride}u`))}
          ${sync}`,
        ),
        following,
      )} }`;
    const made = (n: Index, m: Index): string =>
      s.barriers
        ? f.loadLeft(
            'part',
            'queries',
            `(subgroup * 32u + ${u32(times(m, 16))}) * ${this.keyStride}u + ${u32(times(n, 2))}`,
            `${this.keyStride}u`,
          )
        : `let part = query${m}_${n};`;
    const steps = paddedFeatures(map) / s.staged;
    const next = (n: Index): string =>
      typeof n !== 'number' ? following : n + 1 < steps ? this.fetchState() : s.causal ? this.fetchKeys() : '';
    return loops.each(0, steps, (n) =>
      this.step(
        loops.each(0, perStep, (c) => this.accumulate(c, (m) => made(plus(times(n, perStep), c), m))),
        next(n),
      ),
    );
  }

  /** Features 16 n and following of this lane's query, into the slice. */
  private queryFeatures(n: string): string {
    return `
          var low = vec4u();
          var high = vec4u();
          ${this.map.features('q', n)}
          slices[slice + subgroupLane * ${weightStride}u] = low;
          slices[slice + subgroupLane * ${weightStride}u + 1u] = high;`;
  }

  /** What keys meet, queries or their features: fragments `query<block>_<depth>` in registers, or rows of `queries` under barriers. */
  private queryFragments(units: readonly number[]): string {
    const { map, s, f, keyStride, depth } = this;
    if (map.weight && !s.causal) return '';
    const load = (m: number, d: number, at: string, stride: number): string => f.loadLeft(`query${m}_${d}`, 'slices', at, `${stride}u`);
    if (s.barriers)
      return map.weight
        ? units.map((u) => `queries[lane * ${keyStride}u + ${u}u] = row${u};`).join(' ')
        : this.loops.each(
            0,
            depth,
            (d) => `
            var low = vec4u();
            var high = vec4u();
            ${map.features('q', u32(d))}
            queries[lane * ${keyStride}u + ${u32(times(d, 2))}] = low;
            queries[lane * ${keyStride}u + ${u32(times(d, 2))} + 1u] = high;`,
          );
    if (map.weight)
      return `
      ${units.map((u) => `slices[slice + subgroupLane * ${keyStride}u + ${u}u] = row${u};`).join(' ')}
      ${range(2)
        .flatMap((m) => range(depth).map((d) => load(m, d, `slice + ${16 * m * keyStride + 2 * d}u`, keyStride)))
        .join('\n')}`;
    return range(depth)
      .map(
        (d) =>
          `{ ${this.queryFeatures(`${d}u`)} } ${range(2)
            .map((m) => load(m, d, `slice + ${16 * weightStride * m}u`, weightStride))
            .join(' ')}`,
      )
      .join('\n');
  }

  /** o += left (rows of both blocks, in `slices` at `place`, or fragments) times 16 staged rows from `c` on. */
  private accumulate(c: Index, left: (m: Index) => string): string {
    const { f, loops, valueStride } = this;
    return `
          ${loops.columnsOf((j) => f.loadRight(`value${j}`, 'values', `${u32(times(c, 16 * valueStride))} + ${(j * f.N) / 8}u`, `${valueStride}u`))}
          ${loops.each(0, 2, (m) => `${left(m)} ${loops.columnsOf((j) => f.multiplyAdd(loops.at('o', m, j), 'part', `value${j}`))}`)}`;
  }

  private keyStep(): string {
    const { s, f, loops, sync } = this;
    const weights = (m: Index): string => `slice + ${weightsAt}u${s.barriers ? ` + ${u32(times(m, 16 * weightStride))}` : ''}`;
    const chunk = (c: Index): string => {
      const of = (m: Index): string => `${this.scores(c, m)} ${this.weights(c, m, weights(m))}`;
      if (s.barriers)
        return `${loops.each(0, 2, of)} ${this.accumulate(c, (m) => f.loadLeft('part', 'slices', weights(m), `${weightStride}u`))} ${sync}`;
      // the blocks share a slice: a block's weights wait in a fragment; keys behind all rows are left out
      return `if (keyStart + ${u32(times(c, 16))} < ownFirst + 32u) {
            ${f.emptyLeft('weight0')} ${f.emptyLeft('weight1')}
            ${range(2)
              .map((m) => `{ ${of(m)} ${f.setLeft(`weight${m}`, 'slices', weights(m), `${weightStride}u`)} }`)
              .join('\n')}
            ${this.accumulate(c, (m) => `let part = weight${m};`)} }`;
    };
    return `let keyStart = first + (step - 1u - featureSteps) * ${s.staged}u; ${loops.each(0, s.staged / 16, chunk)}`;
  }

  /** Products of block m with 16 keys, into the slice. */
  private scores(c: Index, m: Index): string {
    const { s, f, keyStride, depth, sync } = this;
    const loops = new FragmentLoops(f, 16 / f.N);
    const key = (d: Index, j: number): string =>
      f.loadRight('key', 'keys', `(${u32(times(c, 16))} + ${j * f.N}u) * ${keyStride}u + ${u32(times(d, 2))}`, `${keyStride}u`, 'column');
    const query = (d: Index): string =>
      f.loadLeft('part', 'queries', `(subgroup * 32u + ${u32(times(m, 16))}) * ${keyStride}u + ${u32(times(d, 2))}`, `${keyStride}u`);
    return `
            ${loops.declare('p', 1)}
            ${this.loops.each(
              0,
              depth,
              (d) => `
            ${s.barriers ? query(d) : ''}
            ${loops.columnsOf((j) => `{ ${key(d, j)} ${f.multiplyAdd(loops.at('p', 0, j), s.barriers ? 'part' : `query${m}_${d}`, 'key')} }`)}`,
            )}
            ${loops.columnsOf((j) => f.store(loops.at('p', 0, j), 'slices', `slice + ${(j * f.N) / 4}u`, `${scoreStride}u`))}
            ${sync}`;
  }

  /** Weights of block m from its scores, eight keys a lane. */
  private weights(c: Index, m: Index, place: string): string {
    const { map, sync } = this;
    // features carry the factor of their row already
    const weighed = (x: string): string => (map.weight ? `${map.weight(x)} * own` : `${x} * keysUp`);
    const past = (first: number): string =>
      `vec4u(${range(4)
        .map((e) => `j + ${first + e}u`)
        .join(', ')}) <= vec4u(i)`;
    return `{
            let i = ownFirst + ${u32(times(m, 16))} + row;
            let j = keyStart + ${u32(times(c, 16))} + 8u * pair;
            ${map.weight ? `let own = factors[${u32(plus('subgroup * 32u + row', times(m, 16)))}];` : ''}
            var a = bitcast<vec4f>(slices[slice + row * ${scoreStride}u + 2u * pair]);
            var b = bitcast<vec4f>(slices[slice + row * ${scoreStride}u + 2u * pair + 1u]);
            a = ${weighed('a')};
            b = ${weighed('b')};
            if (j + 7u > i) {
              a = select(vec4f(), a, ${past(0)});
              b = select(vec4f(), b, ${past(4)});
            }
            slices[${place} + row * ${weightStride}u + pair] = vec4u(fourOf(a), fourOf(b));
            ${sync}
            }`;
  }

  /** Sums through the slice, 16 columns at a time, divided by the ones' column. */
  private finish(): string {
    const { s, f, loops, sync } = this;
    const stride = `${scoreStride}u`;
    const perBand = 16 / f.N;
    const fragments = s.width / f.N;
    const band = (m: Index, b: number): string =>
      range(perBand)
        .filter((j) => b * perBand + j < fragments)
        .map((j) => f.store(loops.at('o', m, b * perBand + j), 'slices', `slice + ${(j * f.N) / 4}u`, stride))
        .join('\n');
    const ones = Math.floor(s.columns / 16);
    return loops.each(
      0,
      2,
      (m) => `
        let token = ownFirst + ${u32(times(m, 16))} + row;
        let alive = token < length;
        let own = factors[${u32(plus('subgroup * 32u + row', times(m, 16)))}];
        ${
          s.normalise
            ? `
        ${band(m, ones)}
        ${sync}
        let sum = bitcast<f32>(slices[slice + row * ${stride} + ${(s.columns % 16) / 4}u].x) + uniforms.epsilon * own${this.map.epsilonPerKey ? ` * f32(${s.causal ? 'token + 1u' : 'length'})` : ''};
        ${sync}`
            : 'let sum = own;'
        }
        let inverse = select(0.0, 1.0 / sum, alive);
        ${s.norm ? 'if (alive && token < rowEnd && pair == 0u && columnTile == 0u) { store_norm((batch * uniforms.tokens + token) * uniforms.heads + head, sum / own); }' : ''}
        ${range(Math.ceil(s.columns / 16))
          .map(
            (b) => `
        ${band(m, b)}
        ${sync}
        if (token < rowEnd${s.columns % 16 !== 0 && b === ones ? ' && pair == 0u' : ''}) {
          let base = ${rowOf('out', 'token')};
          vectorTo_out(base, columns + ${16 * b}u + 8u * pair, bitcast<vec4f>(slices[slice + row * ${stride} + 2u * pair]) * inverse);
          vectorTo_out(base, columns + ${16 * b}u + 8u * pair + 4u, bitcast<vec4f>(slices[slice + row * ${stride} + 2u * pair + 1u]) * inverse);
        }
        ${sync}`,
          )
          .join('\n')}`,
    );
  }
}
