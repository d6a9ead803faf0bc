import { captureDerivative, derivative, type ExprFunction, toWgsl, type WgslNames } from '../kernel/expr/index.js';
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
function wgslNames({ captures, uniforms }: Slots, owner: 'score' | 'mask', variables: Readonly<Record<string, string>> = {}): WgslNames {
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

/**
 * WGSL of `addTerms(g, s, b, h, q, kv)`: for each place where the score function reads one of the captures, adds g times its
 * derivative to that element's accumulator. The first accumulator of capture i is component i of `uniforms.firstAt`.
 */
export function renderTerms(fn: ExprFunction, table: Slots, wanted: readonly string[]): string {
  return remember(`terms ${fn.key} ${wanted.join()}`, table, () => {
    const spelt = Object.fromEntries(fn.inputs.map(({ name }, i) => [name, ['s', 'b', 'h', 'q', 'kv'][i] ?? name]));
    const names = wgslNames(table, 'score', spelt);
    const terms = wanted.flatMap((name, w) =>
      captureDerivative(fn.body, name).map(({ index, value }, t) => {
        const place = toWgsl(index, { ...names, prefix: `i${w}_${t}_` });
        const factor = toWgsl(value, { ...names, prefix: `v${w}_${t}_` });
        const declaration = fn.captures.find((c) => c.name === name);
        const length = declaration ? (names.capture?.(declaration).length ?? '1u') : '1u';
        const unsigned = index.type === 'i32' ? `u32(max(${place.result}, 0))` : place.result;
        const first = `uniforms.firstAt[${w >> 2}][${w & 3}]`;
        return `{ ${place.statements} ${factor.statements} addFixed(${first} + min(${unsigned}, ${length} - 1u), g * ${factor.result}); }`;
      }),
    );
    return `fn addTerms(g: f32, s: f32, ${parameters}) { ${terms.join('\n')} }`;
  });
}
