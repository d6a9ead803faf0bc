import { unroll, wgslFloat } from '@heed/core/~internal';

// Pieces of WGSL that the kernels of the scan share; all of them read the uniforms of `sweepUniforms`.

/** Workgroup index to (column tile, head, segment, batch): neighbours share the rows of a token. */
export const segmentOf = `
    fn segmentOf(index: u32) -> vec4u {
      let head = index / uniforms.columnTiles;
      let segment = head / uniforms.heads;
      return vec4u(index % uniforms.columnTiles, head % uniforms.heads, segment % uniforms.segments, segment / uniforms.segments);
    }`;

/** Valid tokens of a batch entry. */
export function lengthOf(bound: boolean): string {
  return `fn lengthOf(batch: u32) -> u32 { return ${bound ? 'min(u32(max(load_lengths(batch), 0)), uniforms.tokens)' : 'uniforms.tokens'}; }`;
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
