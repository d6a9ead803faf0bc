// What the cache's kernels share: where a stored row lies, and the loaders of a codec.
import type { KvCodec } from '../../seams/kv-codec.js';

/** Uniforms of a group's layout. */
export const layoutUniforms = {
  /** Batch entries that there is room for: counts are laid out for them. */
  maxBatch: 'u32',
  kvHeads: 'u32',
  groupHeads: 'u32',
  pages: 'u32',
  pageTokens: 'u32',
  keyRow: 'u32',
  valueRow: 'u32',
  sinks: 'u32',
  recent: 'u32',
} as const;

/** Functions of a place: `placeOf(b, head, row)`, tokens seen, stored rows. Needs bindings `index` and `counts` as u32 and i32. */
export const placeFunctions: string = `
  fn headAt(i: u32) -> u32 { return load_index(i); }
  fn placeOf(b: u32, i: u32, row: u32) -> u32 {
    let page = load_index(uniforms.groupHeads + b * uniforms.pages + min(row / uniforms.pageTokens, uniforms.pages - 1u));
    return (page * uniforms.groupHeads + i) * uniforms.pageTokens + row % uniforms.pageTokens;
  }
  fn seenOf(b: u32) -> u32 { return u32(load_counts(b)); }
  fn freshOf(b: u32) -> u32 { return u32(load_counts(uniforms.maxBatch + b)); }
  fn lengthOf(b: u32, head: u32) -> u32 { return u32(load_counts(2u * uniforms.maxBatch + b * uniforms.kvHeads + head)); }
  // the row that a token is stored in: itself, or a slot of the ring behind the sinks
  fn rowOf(position: u32) -> u32 {
    if (uniforms.recent == 0u || position < uniforms.sinks) { return position; }
    return uniforms.sinks + (position - uniforms.sinks) % uniforms.recent;
  }`;

/** `fn <name>Quad(row, quad) -> vec4f` over the pool bound as `pool`. */
export function loaderText(name: string, pool: string, codec: KvCodec, dim: number): string {
  return `
    fn stored_${pool}(i: u32) -> ${codec.item} { return ${pool}[base_${pool}() + i]; }
    fn ${name}Quad(row: u32, quad: u32) -> vec4f { ${codec.load(dim, `stored_${pool}`)} }`;
}

const made = new WeakMap<KvCodec, WeakMap<KvCodec, Map<string, unknown>>>();

/** A kernel for two codecs, defined once. */
export function forCodecs<K>(kind: string, keys: KvCodec, values: KvCodec, define: () => K): K {
  let byValues = made.get(keys);
  if (!byValues) made.set(keys, (byValues = new WeakMap()));
  let kinds = byValues.get(values);
  if (!kinds) byValues.set(values, (kinds = new Map()));
  const found = kinds.get(kind) as K | undefined;
  if (found !== undefined) return found;
  const kernel = define();
  kinds.set(kind, kernel);
  return kernel;
}
