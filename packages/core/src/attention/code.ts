import { derivative, type ExprFunction, toWgsl, type WgslNames } from '../kernel/expr/index.js';
import type { Mask } from './mask/index.js';

// Score functions and predicates as WGSL. Captured arrays are slices of a bound buffer, uniforms bits in the uniform struct, both
// by number: `slots` of each, so that values never specialise a kernel.

/** Captured arrays, and uniforms, that score function and mask may read together. */
export const slots = 16;

/** What lies in which slot. */
export interface Slots {
  captures: readonly { name: string; buffer: 'extras' | 'arena' }[];
  uniforms: readonly string[];
}

const parameters = 'b: i32, h: i32, q: i32, kv: i32';
const rendered = new Map<string, string>();

/** WGSL of `scoreOf` and its slope `slopeOf`, functions of (s, b, h, q, kv). */
export function renderScore(fn: ExprFunction, table: Slots): string {
  return remember(`score ${fn.key}`, table, () => {
    const spelt = Object.fromEntries(fn.inputs.map(({ name }, i) => [name, ['s', 'b', 'h', 'q', 'kv'][i] ?? name]));
    const value = toWgsl(fn.body, wgslNames(table, 'score', spelt));
    const slope = toWgsl(derivative(fn.body, fn.inputs[0]!.name), wgslNames(table, 'score', spelt));
    const declarations = [...new Set([value.declarations, slope.declarations])].join('\n');
    return `${declarations}
      fn scoreOf(s: f32, ${parameters}) -> f32 { ${value.statements}\nreturn ${value.result}; }
      fn slopeOf(s: f32, ${parameters}) -> f32 { ${slope.statements}\nreturn ${slope.result}; }`;
  });
}

/** WGSL of `maskOf(b, h, q, kv)`. */
export function renderMask(mask: Mask, table: Slots): string {
  return remember(`mask ${mask.key}`, table, () => {
    const { declarations, statements, result } = toWgsl(mask.predicate, wgslNames(table, 'mask'));
    return `${declarations}\nfn maskOf(${parameters}) -> bool { ${statements}\nreturn ${result}; }`;
  });
}

function remember(what: string, table: Slots, render: () => string): string {
  const key = `${what} ${table.captures.map((c) => `${c.name}@${c.buffer}`).join()} ${table.uniforms.join()}`;
  let text = rendered.get(key);
  if (text === undefined) rendered.set(key, (text = render()));
  return text;
}

/** Names in the slot table are `score <name>` and `mask <name>`, since the two may use one name for different things. */
export function wgslNames(
  { captures, uniforms }: Slots,
  owner: 'score' | 'mask',
  variables: Readonly<Record<string, string>> = {},
): WgslNames {
  const component = (field: string, index: number): string => `uniforms.${field}${index >> 3}[${(index & 7) >> 2}][${index & 3}]`;
  return {
    variable: (name) => variables[name] ?? name,
    uniform: (name, type) => {
      const word = component('values', uniforms.indexOf(`${owner} ${name}`));
      return type === 'u32' ? word : `bitcast<${type}>(${word})`;
    },
    capture: ({ name, elementType }) => {
      const index = captures.findIndex((c) => c.name === `${owner} ${name}`);
      const buffer = captures[index]?.buffer ?? 'extras';
      return {
        length: component('captureLength', index),
        load: (i) => {
          const word = `${buffer}[base_${buffer}() + ${component('captureAt', index)} + ${i}]`;
          return elementType === 'u32' ? word : `bitcast<${elementType}>(${word})`;
        },
      };
    },
  };
}
