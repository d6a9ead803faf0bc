import { HeedError } from '../errors.js';
import type { KvCodec } from '../seams/kv-codec.js';

/** Settings of `rowCodes`. */
export interface RowCodesOptions {
  /** Bits a code. */
  bits: 2 | 4 | 8;
  /** Neighbouring elements of a row that share a scale and a minimum: a multiple of 32 / bits. Default 32. */
  group?: number;
}

const made = new Map<string, KvCodec>();

/**
 * Rows as integer codes with a scale and a minimum (f16) a group of neighbouring elements:
 * code = round((x - min) / scale), scale = (max - min) / (2^bits - 1); ties go to the even code; a group of equal values has
 * scale 0. A row takes bits / 8 + 4 / group bytes an element. First element in the lowest bits.
 * Asymmetric quantisation a token, as KIVI (Liu et al. 2024, section 3) has for values.
 * @param options bits of a code, elements of a group
 * @throws HeedError INVALID_ARGUMENT when the group is no multiple of 32 / bits, or above 256
 */
export function rowCodes({ bits, group = 32 }: RowCodesOptions): KvCodec {
  const perWord = 32 / bits;
  if (!Number.isInteger(group) || group < perWord || group > 256 || group % perWord !== 0)
    throw new HeedError('INVALID_ARGUMENT', `rowCodes: group is ${group} at ${bits} bits; it must be a multiple of ${perWord} up to 256`);
  const name = `codes${bits}x${group}`;
  const found = made.get(name);
  if (found) return found;
  const words = group / perWord;
  const most = 2 ** bits - 1;
  const codec: KvCodec = {
    name,
    item: 'u32',
    unit: group,
    rowItems: (dim) => Math.ceil(dim / group) * (words + 1),
    rowMetadataBytes: (dim) => Math.ceil(dim / group) * 4,
    load: (dim, stored) => `
      let first = row + quad * 4u / ${group}u * ${words + 1}u;
      let at = quad * 4u % ${group}u;
      let range = unpack2x16float(${stored}(first + ${words}u));
      let word = ${stored}(first + at / ${perWord}u) >> (at % ${perWord}u * ${bits}u);
      let codes = vec4f(vec4u(word, word >> ${bits}u, word >> ${2 * bits}u, word >> ${3 * bits}u) & vec4u(${most}u));
      let x = codes * range.x + range.y;
      ${dim % 4 === 0 ? 'return x;' : `return select(vec4f(), x, vec4u(quad * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(${dim}u));`}`,
    encode: (dim, value, put) => `
      let begin = unit * ${group}u;
      let end = min(begin + ${group}u, ${dim}u);
      var low = ${value}(begin);
      var high = low;
      for (var i = begin + 1u; i < hidden(end); i++) { let x = ${value}(i); low = min(low, x); high = max(high, x); }
      let scale = (high - low) / ${most}.0;
      let inverse = select(0.0, 1.0 / max(scale, 1e-37), scale > 0.0);
      let first = row + unit * ${words + 1}u;
      for (var w = 0u; w < hidden(${words}u); w++) {
        var word = 0u;
        for (var c = 0u; c < hidden(${perWord}u); c++) {
          let i = begin + w * ${perWord}u + c;
          if (i < end) { word |= u32(clamp(round((${value}(i) - low) * inverse), 0.0, ${most}.0)) << (c * ${bits}u); }
        }
        ${put}(first + w, word);
      }
      ${put}(first + ${words}u, pack2x16float(clamp(vec2f(scale, low), vec2f(-65504.0), vec2f(65504.0))));`,
  };
  made.set(name, codec);
  return codec;
}
