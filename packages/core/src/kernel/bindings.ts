import type { Storage } from '../device/pool.js';
import { type DType, dtypeBytes } from '../dtype.js';

/** Values that specialise a kernel. Everything that changes the WGSL text is in here; the cache key is derived from it. */
export type Spec = Readonly<Record<string, string | number | boolean>>;

export type Access = 'read' | 'write' | 'readWrite' | 'atomic';

/** `float`: f32 or f16; `any`: every dtype; else exactly this one. */
export type BindingType = DType | 'float' | 'any';

/** One storage binding of a kernel. */
export interface Binding<S extends Spec = Spec> {
  access: Access;
  type: BindingType;
  /** Elements an item: 1 (default) or 4; offsets must then be multiples of it. A function of the spec where it varies. */
  width?: number | ((spec: S) => number);
  /** WGSL element type in place of the dtype's own, for raw loads (`vec4u`); `load_` and `store_` are then left out. */
  raw?: string | ((spec: S) => string | undefined);
  /** Bound only where the spec says so. */
  when?: (spec: S) => boolean;
}

export function read<S extends Spec = Spec>(type: BindingType, options: Omit<Binding<S>, 'access' | 'type'> = {}): Binding<S> {
  return { access: 'read', type, ...options };
}

export function write<S extends Spec = Spec>(type: BindingType, options: Omit<Binding<S>, 'access' | 'type'> = {}): Binding<S> {
  return { access: 'write', type, ...options };
}

/** Read and written by the same dispatch: the kernel must make sure that no other invocation races it. */
export function readWrite<S extends Spec = Spec>(type: BindingType, options: Omit<Binding<S>, 'access' | 'type'> = {}): Binding<S> {
  return { access: 'readWrite', type, ...options };
}

/** `array<atomic<u32>>` or `array<atomic<i32>>`. */
export function atomic<S extends Spec = Spec>(type: 'u32' | 'i32', options: Omit<Binding<S>, 'access' | 'type'> = {}): Binding<S> {
  return { access: 'atomic', type, ...options };
}

/** What a kernel can be run on; tensors are operands. */
export interface Operand {
  readonly storage: Storage;
  readonly dtype: DType;
  /** First element. */
  readonly offset: number;
  /** Elements from the first to the last one that may be touched, inclusive. */
  readonly extent: number;
  /** For messages. */
  readonly label?: string | undefined;
  readonly shape?: readonly number[];
}

/** A binding after specialisation: everything that its WGSL needs. */
export interface ResolvedBinding {
  name: string;
  /** Its place among the declared bindings. */
  index: number;
  /** The uniform that holds its first item. */
  offsetName: string;
  access: Access;
  dtype: DType;
  width: number;
  raw: string | undefined;
  /** f16 or u8 kept as packed words, because arithmetic on the dtype is absent. */
  packed: boolean;
  itemBytes: number;
}

const rawBytes: Record<string, number> = {
  u32: 4,
  f32: 4,
  i32: 4,
  f16: 2,
  vec2u: 8,
  vec2f: 8,
  'vec4<f16>': 8,
  vec4u: 16,
  vec4f: 16,
  vec4i: 16,
  'vec2<f16>': 4,
};

export function resolveBinding<S extends Spec>(
  name: string,
  index: number,
  binding: Binding<S>,
  dtype: DType,
  spec: S,
  f16: boolean,
): ResolvedBinding {
  const width = typeof binding.width === 'function' ? binding.width(spec) : (binding.width ?? 1);
  const raw = typeof binding.raw === 'function' ? binding.raw(spec) : binding.raw;
  const packed = (dtype === 'f16' && !f16) || dtype === 'u8';
  let itemBytes = dtypeBytes(dtype) * width;
  if (raw !== undefined) {
    const size = rawBytes[raw];
    if (size === undefined) throw new Error(`kernel: binding "${name}" has the unknown raw type ${raw}`);
    itemBytes = size;
  }
  return { name, index, offsetName: `${name}Offset`, access: binding.access, dtype, width, raw, packed, itemBytes };
}

/** The value type that `load_<name>` gives: f16 loads as f32, u8 as u32. */
function valueType(b: ResolvedBinding): string {
  const scalar = b.dtype === 'f16' ? 'f32' : b.dtype === 'u8' ? 'u32' : b.dtype;
  return b.width === 1 ? scalar : `vec4<${scalar}>`;
}

function elementType(b: ResolvedBinding): string {
  if (b.raw !== undefined) return b.raw;
  if (b.access === 'atomic') return `atomic<${b.dtype}>`;
  if (b.packed) return b.width === 1 ? 'u32' : b.dtype === 'f16' ? 'vec2u' : 'u32';
  return b.width === 1 ? b.dtype : `vec4<${b.dtype}>`;
}

/** Declaration of a binding and its accessors `load_<name>(i)`, `store_<name>(i, value)`, i counted in items from the tensor's start. */
export function bindingWgsl(b: ResolvedBinding, index: number): string {
  const { name } = b;
  const access = b.access === 'read' ? 'read' : 'read_write';
  const lines = [`@group(0) @binding(${index}) var<storage, ${access}> ${name}: array<${elementType(b)}>;`];
  if (b.raw !== undefined || b.access === 'atomic') {
    lines.push(`fn base_${name}() -> u32 { return uniforms.${name}Offset; }`);
    return lines.join('\n');
  }
  const at = `uniforms.${name}Offset + i`;
  const value = valueType(b);
  lines.push(`fn load_${name}(i: u32) -> ${value} { ${loadBody(b, at)} }`);
  if (b.access !== 'read' && !(b.packed && b.width === 1)) {
    lines.push(`fn store_${name}(i: u32, value: ${value}) { ${storeBody(b, at)} }`);
  }
  return lines.join('\n');
}

function loadBody(b: ResolvedBinding, at: string): string {
  const { name } = b;
  if (b.dtype === 'f16' && b.packed) {
    return b.width === 1
      ? `let at = ${at}; let pair = unpack2x16float(${name}[at >> 1u]); return select(pair.x, pair.y, (at & 1u) == 1u);`
      : `let word = ${name}[${at}]; return vec4f(unpack2x16float(word.x), unpack2x16float(word.y));`;
  }
  if (b.dtype === 'u8') {
    return b.width === 1
      ? `let at = ${at}; return (${name}[at >> 2u] >> ((at & 3u) * 8u)) & 0xffu;`
      : `let word = ${name}[${at}]; return vec4u(word & 0xffu, (word >> 8u) & 0xffu, (word >> 16u) & 0xffu, word >> 24u);`;
  }
  const item = `${name}[${at}]`;
  return `return ${b.dtype === 'f16' ? `${valueType(b)}(${item})` : item};`;
}

function storeBody(b: ResolvedBinding, at: string): string {
  const { name } = b;
  if (b.dtype === 'f16' && b.packed)
    return `${name}[${at}] = vec2u(pack2x16float(clamp(value.xy, vec2f(-65504.0), vec2f(65504.0))), pack2x16float(clamp(value.zw, vec2f(-65504.0), vec2f(65504.0))));`;
  if (b.dtype === 'u8')
    return `${name}[${at}] = (value.x & 0xffu) | ((value.y & 0xffu) << 8u) | ((value.z & 0xffu) << 16u) | ((value.w & 0xffu) << 24u);`;
  if (b.dtype === 'f16') return `${name}[${at}] = ${b.width === 1 ? 'f16' : 'vec4<f16>'}(value);`;
  return `${name}[${at}] = value;`;
}
