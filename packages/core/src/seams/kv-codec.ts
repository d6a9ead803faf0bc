/**
 * How a row of keys or values is stored: WGSL that loads and encodes it. Rows are coded one by one; every tier runs the same text.
 * `name` states all that the texts depend on; one codec object serves all caches of its kind.
 */
export interface KvCodec {
  readonly name: string;
  /** WGSL type of a stored item: 4, 8 or 16 bytes. */
  readonly item: 'u32' | 'vec2u' | 'vec4u';
  /** Elements that one invocation encodes together, a multiple of 4: a quad of plain numbers, or a group with its own scale. */
  readonly unit: number;
  /** Items of a stored row of `dim` elements. */
  rowItems(dim: number): number;
  /** Bytes of a row beside its elements' codes: scales, minima, bitmaps. */
  rowMetadataBytes(dim: number): number;
  /**
   * Body of `fn(row: u32, quad: u32) -> vec4f`: elements 4 quad .. 4 quad + 3 of the row whose first item is `row`. Items are read as
   * `stored(i)`; elements beyond `dim` must be 0.
   */
  load(dim: number, stored: string): string;
  /**
   * Body of `fn(row: u32, unit: u32)`: encodes elements unit * this.unit and on. Elements are read as `value(i)` (0 beyond `dim`),
   * items written as `put(i, item)`; every item of the row is put by exactly one unit. Bounds of loops go through `hidden(n)`, which is
   * n in a way that compilers cannot unroll: software drivers take minutes over long text.
   */
  encode(dim: number, value: string, put: string): string;
}

/** Bytes of a codec's stored row. */
export function rowBytes(codec: KvCodec, dim: number): number {
  return codec.rowItems(dim) * itemBytes(codec);
}

/** Bytes of an item that a codec loads at once. */
export function itemBytes(codec: KvCodec): number {
  return codec.item === 'u32' ? 4 : codec.item === 'vec2u' ? 8 : 16;
}
