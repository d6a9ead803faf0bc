import { unroll, wgslFloat } from '@heed/core/~internal';

// Pieces of WGSL that the kernels of the scan share; all of them read the uniforms of `sweepUniforms`.

/** Workgroup index to (column tile, head, segment, batch): neighbours share the rows of a token. */
export const segmentOf = `
    fn segmentOf(index: u32) -> vec4u {
      let head = index / uniforms.columnTiles;
      let segment = head / uniforms.heads;
      return vec4u(index % uniforms.columnTiles, head % uniforms.heads, segment % uniforms.segments, segment / uniforms.segments);
    }`;

/** Declares what a workgroup with its state in registers sweeps: `place`, `columns`, `head`, `batch`, `length`, `firstToken`, `first`, `end`. */
export const sweptSegment = (columns: number): string => `
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let place = segmentOf(index);
      let columns = place.x * ${columns}u;
      let head = place.y;
      let batch = place.w;
      let length = lengthOf(batch);
      let firstToken = place.z * uniforms.segmentTokens;
      let first = min(firstToken, length);
      let end = min(first + uniforms.segmentTokens, length);`;

/** Valid tokens of a batch entry among those at hand. */
export function lengthOf(bound: boolean): string {
  const valid = 'u32(max(load_lengths(batch) - i32(uniforms.tokensBefore), 0))';
  return `fn lengthOf(batch: u32) -> u32 { return ${bound ? `min(${valid}, uniforms.tokens)` : 'uniforms.tokens'}; }`;
}

/** `vector_<name>(base, d)`: elements d .. d+3 of the row at element `base`, zeros from `dim` on. */
export function vectorLoad(name: string, width: number, dim: number): string {
  if (width === 4) {
    return `fn vector_${name}(base: u32, d: u32) -> vec4f { return select(vec4f(), vec4f(load_${name}((base + d) / 4u)), d < ${dim}u); }`;
  }
  // select discards the other value, so that what lies beside a row never enters
  const element = (c: number): string => `select(0.0, load_${name}(base + d + ${c}u), d + ${c}u < ${dim}u)`;
  return `fn vector_${name}(base: u32, d: u32) -> vec4f { return vec4f(${[0, 1, 2, 3].map(element).join(', ')}); }`;
}

/** log2(e), which turns a log-decay into one of base 2. */
export const log2e: string = wgslFloat(Math.LOG2E);

/** `lossOf(gate)`: exp(gate) - 1, by its series where the gate is small: a rounded factor close to 1 would be off by 1e-4 after 1,000 tokens. */
export const lossText: string = `
    fn lossOf(gate: vec4f) -> vec4f {
      let g = max(gate, vec4f(-1e4));
      let series = g * fma(g, fma(g, fma(g, vec4f(0.041666667), vec4f(0.16666667)), vec4f(0.5)), vec4f(1.0));
      return select(exp2(g * ${log2e}) - 1.0, series, abs(g) < vec4f(0.03));
    }`;

/** `rate`: log2 of the decay a token; a decay of minus infinity stays finite and still gives 0. */
export function rateOf(head: string): string {
  return `max(load_decay(${head}), -1e4) * ${log2e}`;
}

/** `vectorTo_<name>(base, d, value)`: the reverse of `vector_<name>`. */
export function vectorStore(name: string, width: number, dim: number): string {
  const body =
    width === 4
      ? `if (d < ${dim}u) { store_${name}((base + d) / 4u, value); }`
      : unroll(4, (c) => `if (d + ${c}u < ${dim}u) { store_${name}(base + d + ${c}u, value[${c}]); }`, ' ');
  return `fn vectorTo_${name}(base: u32, d: u32, value: vec4f) { ${body} }`;
}

/** `vectorTo_out(base, d, value)`, or for rows in 16 bytes `eightTo_out(base, d, lower, upper)`. */
export function outStore(width: number, dim: number): string {
  if (width < 8) return vectorStore('out', width, dim);
  return `
      fn eightTo_out(base: u32, d: u32, lower: vec4f, upper: vec4f) {
        if (d < ${dim}u) { out[base_out() + (base + d) / 8u] = vec4u(fourOf(lower), fourOf(upper)); }
      }`;
}

/** `tokenAt(i, length)`: the token that is swept as number i. */
export const tokenOf = `
    fn tokenAt(i: u32, length: u32) -> u32 { return select(i, length - 1u - i, uniforms.reverse == 1u); }`;

/** `initialAt(base, row, column)`: an element of the state before a segment, which may be stored transposed; zero outside. */
export function initialOf(keyDim: number, valueDim: number): string {
  return `
    fn initialAt(base: u32, row: u32, column: u32) -> f32 {
      return select(0.0, load_initial(base + row * uniforms.stateRow + column * uniforms.stateColumn), row < ${keyDim}u && column < ${valueDim}u);
    }`;
}

/** The last tokens of a segment that count: what decayed below 1e-8 (2^-27) adds nothing in f32. The last does not decay, so one is always left. */
export const aliveOf = `
    fn aliveOf(rate: f32) -> u32 { return u32(min(27.0 / max(-rate, 1e-6), 1e9)) + 1u; }`;

/** A sweep that only makes states begins behind what adds nothing. */
export const aliveFrom = `
      at = max(first, end - min(end, aliveOf(rate)));`;

/** Tokens a part of a segment, of which `alive` are alive: whole chunks. */
export const shareOf = `
    fn shareOf(alive: u32) -> u32 {
      return ((alive + uniforms.parts - 1u) / uniforms.parts + uniforms.partStep - 1u) / uniforms.partStep * uniforms.partStep;
    }`;

/** A sweep that only makes states may cut what is alive of a segment into parts, each with a state of its own. */
export const partOf = `
        let perPart = uniforms.workgroups / uniforms.parts;
        let part = item / perPart;
        let index = item % perPart;`;

/** The tokens of this part, and what decays its state until the end of the segment; nobody reads the state of a part without tokens. */
export const ownPart: string = `
        let segmentEnd = end;
        ${aliveFrom}
        let share = shareOf(end - at);
        at = min(at + part * share, end);
        end = min(at + share, end);
        if (uniforms.parts > 1u && at >= end) { return; }
        let finalScale = uniforms.stateScale * exp2(rate * f32(segmentEnd - end));`;

/** Workgroup `index` to the segment that it sweeps, all equally long. */
export const equalSegments = `
        let position = segmentOf(index);
        let firstToken = position.z * uniforms.segmentTokens;
        let lastToken = firstToken + uniforms.segmentTokens;`;

/** Workgroup `index` to the run that it sweeps, of a table of (head, first token, token behind the last). */
export const runOf = `
        let run = index / uniforms.columnTiles % uniforms.segments * 3u;
        let position = vec4u(index % uniforms.columnTiles, load_ranges(run), 0u, index / uniforms.columnTiles / uniforms.segments);
        let firstToken = load_ranges(run + 1u);
        let lastToken = load_ranges(run + 2u);`;

/**
 * `at`: where the tokens begin that still count at the first of a run, whole chunks before it. None for a run without tokens, unless
 * the state behind it is wanted.
 */
export function leadFrom(chunk: number, final: boolean): string {
  return `
        let leadTokens = (aliveOf(rate) + ${chunk - 1}u) / ${chunk}u * ${chunk}u;
        let leads = first < end${final ? ' || lastToken >= uniforms.tokens' : ''};
        var at = first - select(0u, min(first, leadTokens), leads);`;
}

/** `text`, under a condition where there is a choice. */
export function only(choice: boolean, condition: string, text: string): string {
  return choice ? `if (${condition}) { ${text} }` : text;
}

/** Zeros for the outputs of a segment's tokens behind the length of a batch entry; `eights`: by `eightTo_out`, else by `vectorTo_out`. */
export function zeroTail(columns: number, lanes: number, eights = false, lastToken = 'firstToken + uniforms.segmentTokens'): string {
  const size = eights ? 8 : 4;
  const groups = columns / size;
  return `
      let tailFirst = max(length, firstToken);
      let tailEnd = min(${lastToken}, uniforms.tokens);
      for (var e = lane + tailFirst * ${groups}u; e < tailEnd * ${groups}u; e += ${lanes}u) {
        let base = batch * uniforms.outBatch + (e / ${groups}u) * uniforms.outToken + head * uniforms.outHead;
        ${eights ? 'eightTo_out' : 'vectorTo_out'}(base, columns + (e % ${groups}u) * ${size}u, vec4f()${eights ? ', vec4f()' : ''});
      }`;
}
