import type { Capabilities } from '../device/capabilities.js';
import { bindingWgsl, type ResolvedBinding } from './bindings.js';
import { includeModules, type WgslModule } from './modules.js';
import type { UniformLayout } from './uniforms.js';

export interface KernelSource {
  name: string;
  body: string;
  bindings: readonly ResolvedBinding[];
  uniforms: UniformLayout;
  modules: readonly WgslModule[];
  /** Uses hardware subgroup matrices. */
  matrix: boolean;
  capabilities: Capabilities;
}

const common = `
// Finite stand-in of minus infinity: WGSL may assume that there is no infinity.
const NEG = -1e30;
// Index of a workgroup whose one-dimensional grid was folded into y over 65,535.
fn workgroupIndex(group: vec3u, groups: vec3u) -> u32 { return group.x + group.y * groups.x; }`;

/** The whole WGSL text of a specialised kernel. */
export function kernelWgsl(source: KernelSource): string {
  const { capabilities } = source;
  const enables: string[] = [];
  if (capabilities.f16) enables.push('enable f16;');
  if (capabilities.subgroups) enables.push('enable subgroups;');
  if (source.matrix) enables.push('enable chromium_experimental_subgroup_matrix;');
  if (source.matrix && capabilities.subgroupSizeControl) enables.push('enable subgroup_size_control;');
  const text = [
    ...enables,
    `// ${source.name}`,
    source.uniforms.wgsl,
    ...source.bindings.map((b, i) => bindingWgsl(b, i + 1)),
    common.trim(),
    includeModules(source.modules),
    source.body.trim(),
  ].join('\n');
  checkWorkgroupVariables(source.name, text);
  return text;
}

const scalarBytes: Record<string, number> = {
  u32: 4,
  i32: 4,
  f32: 4,
  f16: 2,
  vec2u: 8,
  vec2f: 8,
  vec2i: 8,
  vec4u: 16,
  vec4f: 16,
  vec4i: 16,
  'vec4<f16>': 8,
  'vec2<f16>': 4,
  'vec4<f32>': 16,
  'vec4<u32>': 16,
  'vec2<f32>': 8,
  'vec2<u32>': 8,
  'atomic<u32>': 4,
  'atomic<i32>': 4,
};

/**
 * A workgroup variable whose size is no multiple of 16 bytes shifts the ones after it, and matrix loads from those then
 * return wrong values on one driver, silently. Every generated kernel is held to it.
 */
export function checkWorkgroupVariables(name: string, text: string): void {
  const plain = text.replace(/\/\/[^\n]*/g, '');
  for (const match of plain.matchAll(/var<workgroup>\s+(\w+)\s*:\s*([^;]+);/g)) {
    const type = (match[2] ?? '').trim();
    const bytes = typeBytes(type);
    if (bytes === undefined)
      throw new Error(
        `kernel ${name}: the size of workgroup variable ${match[1]}: ${type} is not known; write it as array<scalar or vector, literal>`,
      );
    if (bytes % 16 !== 0)
      throw new Error(`kernel ${name}: workgroup variable ${match[1]}: ${type} has ${bytes} bytes; pad it to a multiple of 16`);
  }
}

/** Bytes of workgroup memory that a text declares. */
export function workgroupBytes(text: string): number {
  let total = 0;
  for (const match of text.replace(/\/\/[^\n]*/g, '').matchAll(/var<workgroup>\s+(\w+)\s*:\s*([^;]+);/g))
    total += typeBytes((match[2] ?? '').trim()) ?? 0;
  return total;
}

function typeBytes(type: string): number | undefined {
  const array = /^array<\s*(.+?)\s*,\s*(\d+)u?\s*>$/.exec(type);
  if (!array) return scalarBytes[type];
  const element = typeBytes(array[1] ?? '');
  return element === undefined ? undefined : element * Number(array[2]);
}
