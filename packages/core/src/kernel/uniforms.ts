import { slotBytes } from '../device/recorder.js';
import type { UniformValues } from './definition.js';

/** Types of run-time values: scalars, and up to eight u32 (shapes, strides) as `array<vec4u, 2>`. */
export type UniformType = 'u32' | 'i32' | 'f32' | 'u32x8';
export type UniformValue<T extends UniformType> = T extends 'u32x8' ? readonly number[] : number;

export interface UniformLayout {
  wgsl: string;
  /** Slots of the ring that the struct takes. */
  slots: number;
  /** The word that holds the first item of the first binding; those of the others follow. */
  firstItem: number;
  /** For each declared uniform its name, the first word of it in the struct, and whether it is f32. */
  names: readonly string[];
  words: readonly number[];
  floats: readonly boolean[];
}

/** The uniform struct: vectors first (they align to 16 bytes), then scalars. */
export function layoutUniforms(offsetNames: readonly string[], values: readonly (readonly [string, UniformType])[]): UniformLayout {
  const fields = [...offsetNames.map((name) => [name, 'u32'] as const), ...values];
  const ordered = [...fields.filter(([, type]) => type === 'u32x8'), ...fields.filter(([, type]) => type !== 'u32x8')];
  const wordOf = new Map<string, number>();
  let offset = 0;
  for (const [name, type] of ordered) {
    wordOf.set(name, offset / 4);
    offset += type === 'u32x8' ? 32 : 4;
  }
  const members = ordered.map(([name, type]) => `${name}: ${type === 'u32x8' ? 'array<vec4u, 2>' : type}`);
  if (members.length === 0) members.push('unused: u32');
  return {
    wgsl: `struct Uniforms { ${members.join(', ')} }\n@group(0) @binding(0) var<uniform> uniforms: Uniforms;`,
    slots: Math.max(1, Math.ceil(offset / slotBytes)),
    firstItem: wordOf.get(offsetNames[0] ?? '') ?? 0,
    names: values.map(([name]) => name),
    words: values.map(([name]) => wordOf.get(name) ?? 0),
    floats: values.map(([, type]) => type === 'f32'),
  };
}

/** Writes the values of a run into the ring from word `at` on, as the struct lays them out. */
export function packUniforms(
  layout: UniformLayout,
  values: UniformValues,
  ring: { readonly words: Uint32Array; readonly floats: Float32Array },
  at: number,
): void {
  const words = layout.words;
  for (let i = 0; i < words.length; i++) {
    const value = values[i];
    const place = at + (words[i] as number);
    if (typeof value !== 'number') packVector(layout.names[i], value, ring.words, place);
    else if (layout.floats[i]) ring.floats[place] = value;
    else ring.words[place] = value; // i32 wraps to the same bits
  }
}

function packVector(name: string | undefined, value: readonly number[] | undefined, words: Uint32Array, at: number): void {
  if (value === undefined) throw new Error(`kernel: uniform "${name}" was not given`);
  for (let j = 0; j < 8; j++) words[at + j] = value[j] ?? 0;
}
