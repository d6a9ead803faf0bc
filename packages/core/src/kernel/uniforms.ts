import { slotBytes } from '../device/recorder.js';
import type { UniformValues } from './definition.js';

/** Types of run-time values: scalars, and up to eight u32 (shapes, strides) as `array<vec4u, 2>`. */
export type UniformType = 'u32' | 'i32' | 'f32' | 'u32x8';
export type UniformValue<T extends UniformType> = T extends 'u32x8' ? readonly number[] : number;

interface UniformField {
  name: string;
  type: UniformType;
  /** The first word of it in the struct. */
  word: number;
  /** Its place among the declared uniforms. */
  index: number;
}

export interface UniformLayout {
  wgsl: string;
  /** Slots of the ring that the struct takes. */
  slots: number;
  /** The values of a run. */
  values: readonly UniformField[];
  /** The word that holds the first item of each binding. */
  offsets: readonly number[];
}

/** The uniform struct: vectors first (they align to 16 bytes), then scalars. */
export function layoutUniforms(offsetNames: readonly string[], values: readonly (readonly [string, UniformType])[]): UniformLayout {
  const fields = [...offsetNames.map((name) => [name, 'u32'] as const), ...values];
  const ordered = [...fields.filter(([, type]) => type === 'u32x8'), ...fields.filter(([, type]) => type !== 'u32x8')];
  const placed: UniformField[] = [];
  let offset = 0;
  for (const [name, type] of ordered) {
    placed.push({ name, type, word: offset / 4, index: values.findIndex(([own]) => own === name) });
    offset += type === 'u32x8' ? 32 : 4;
  }
  const members = placed.map(({ name, type }) => `${name}: ${type === 'u32x8' ? 'array<vec4u, 2>' : type}`);
  if (members.length === 0) members.push('unused: u32');
  return {
    wgsl: `struct Uniforms { ${members.join(', ')} }\n@group(0) @binding(0) var<uniform> uniforms: Uniforms;`,
    slots: Math.max(1, Math.ceil(offset / slotBytes)),
    values: placed.filter(({ index }) => index >= 0),
    offsets: offsetNames.map((name) => placed.find((field) => field.name === name)?.word ?? 0),
  };
}

/** Writes the values of a run and the first items of its bindings into the ring from word `at` on, as the struct lays them out. */
export function packUniforms(
  layout: UniformLayout,
  values: UniformValues,
  places: readonly { readonly item: number }[],
  ring: { readonly words: Uint32Array; readonly floats: Float32Array },
  at: number,
): void {
  const { words, floats } = ring;
  for (let i = 0; i < layout.offsets.length; i++) words[at + (layout.offsets[i] as number)] = (places[i] as { item: number }).item;
  for (let i = 0; i < layout.values.length; i++) {
    const { name, type, word, index } = layout.values[i] as UniformField;
    const value = values[index];
    if (value === undefined) throw new Error(`kernel: uniform "${name}" was not given`);
    const place = at + word;
    if (typeof value !== 'number') for (let j = 0; j < 8; j++) words[place + j] = value[j] ?? 0;
    else if (type === 'f32') floats[place] = value;
    else words[place] = value; // i32 wraps to the same bits
  }
}
