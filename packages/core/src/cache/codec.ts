import type { KvCodec } from '../seams/kv-codec.js';

/** Rows of plain f32. */
export const f32Codec: KvCodec = {
  name: 'f32',
  item: 'vec4u',
  unit: 4,
  rowItems: (dim) => Math.ceil(dim / 4),
  rowMetadataBytes: () => 0,
  load: (_, stored) => `return bitcast<vec4f>(${stored}(row + quad));`,
  encode: (_, value, put) => `
    let i = unit * 4u;
    ${put}(row + unit, bitcast<vec4u>(vec4f(${value}(i), ${value}(i + 1u), ${value}(i + 2u), ${value}(i + 3u))));`,
};

/** Rows of f16, as packed pairs: the same on every tier. Values beyond 65,504 are cut to it. */
export const f16Codec: KvCodec = {
  name: 'f16',
  item: 'vec2u',
  unit: 4,
  rowItems: (dim) => Math.ceil(dim / 4),
  rowMetadataBytes: () => 0,
  load: (_, stored) => `let pair = ${stored}(row + quad); return vec4f(unpack2x16float(pair.x), unpack2x16float(pair.y));`,
  encode: (_, value, put) => `
    let i = unit * 4u;
    let x = clamp(vec4f(${value}(i), ${value}(i + 1u), ${value}(i + 2u), ${value}(i + 3u)), vec4f(-65504.0), vec4f(65504.0));
    ${put}(row + unit, vec2u(pack2x16float(x.xy), pack2x16float(x.zw)));`,
};
