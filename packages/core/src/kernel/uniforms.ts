/** Types of run-time values: scalars, and up to eight u32 (shapes, strides) as `array<vec4u, 2>`. */
export type UniformType = 'u32' | 'i32' | 'f32' | 'u32x8';
export type UniformValue<T extends UniformType> = T extends 'u32x8' ? readonly number[] : number;

export interface UniformLayout {
  wgsl: string;
  bytes: number;
  /** Byte offset and type of each field. */
  fields: readonly { name: string; type: UniformType; offset: number }[];
}

/** The uniform struct: vectors first (they align to 16 bytes), then scalars. */
export function layoutUniforms(fields: readonly (readonly [string, UniformType])[]): UniformLayout {
  const ordered = [...fields.filter(([, type]) => type === 'u32x8'), ...fields.filter(([, type]) => type !== 'u32x8')];
  const placed: { name: string; type: UniformType; offset: number }[] = [];
  let offset = 0;
  for (const [name, type] of ordered) {
    placed.push({ name, type, offset });
    offset += type === 'u32x8' ? 32 : 4;
  }
  const bytes = Math.max(16, Math.ceil(offset / 16) * 16);
  const members = placed.map(({ name, type }) => `${name}: ${type === 'u32x8' ? 'array<vec4u, 2>' : type}`);
  if (members.length === 0) members.push('unused: u32');
  return {
    wgsl: `struct Uniforms { ${members.join(', ')} }\n@group(0) @binding(0) var<uniform> uniforms: Uniforms;`,
    bytes,
    fields: placed,
  };
}

/** Writes values into `view` from byte `at` on, as the struct lays them out. */
export function packUniforms(
  layout: UniformLayout,
  values: Readonly<Record<string, number | readonly number[]>>,
  view: DataView,
  at: number,
): void {
  for (const { name, type, offset } of layout.fields) {
    const value = values[name];
    if (value === undefined) throw new Error(`kernel: uniform "${name}" was not given`);
    if (typeof value !== 'number') {
      for (let i = 0; i < 8; i++) view.setUint32(at + offset + i * 4, value[i] ?? 0, true);
    } else if (type === 'f32') view.setFloat32(at + offset, value, true);
    else if (type === 'i32') view.setInt32(at + offset, value, true);
    else view.setUint32(at + offset, value, true);
  }
}
