import type { Capabilities } from '../device/capabilities.js';
import { range } from '../kernel/modules.js';
import { type LaneForm, laneForm, lanesFor } from '../kernel/wgsl/lanes.js';

// What kernels share that work on whole rows of the last axis: 256 lanes a workgroup (1,024 for long rows), `lanes` of them a row.

export interface RowSpec {
  [name: string]: string | number | boolean;
  /** Elements an item, 4 where rows start at multiples of 4. */
  width: number;
  lanes: number;
  /** Lanes of a workgroup. */
  invocations: number;
  /** Items of a row that a lane holds in registers, so that the row is read once; 0 where rows are longer and read again. */
  held: number;
  form: LaneForm;
}

/** Items that a lane holds at most: more would cost the GPU its occupancy, and software drivers seconds of compilation. */
const mostHeld = { hardware: 8, software: 2 } as const;

/** How rows of `n` elements are taken. Pure. */
export function rowSpec(
  n: number,
  aligned: boolean,
  capabilities: Capabilities,
  options: { software?: boolean; /** Rows are read once anyway: they need not be held. Default false. */ once?: boolean } = {},
): RowSpec {
  const width = aligned && n % 4 === 0 ? 4 : 1;
  const items = n / width;
  const { subgroups, subgroupMaxSize, limits } = capabilities;
  // rows too long for 256 lanes to hold are held by as many as a workgroup may have
  const wide =
    !options.once &&
    items > 256 * mostHeld.hardware &&
    limits.maxComputeInvocationsPerWorkgroup >= 1024 &&
    subgroups &&
    1024 % subgroupMaxSize === 0 &&
    !options.software;
  const lanes = wide ? 1024 : lanesFor(items);
  const held = 2 ** Math.ceil(Math.log2(Math.max(1, items / lanes)));
  const most = options.software ? mostHeld.software : mostHeld.hardware;
  return {
    width,
    lanes,
    invocations: wide ? 1024 : 256,
    held: !options.once && held <= most ? held : 0,
    form: laneForm(lanes, capabilities),
  };
}

/** What a pass over a row loads into `<name>`: its value at item `at`, and what stands for items past the row's end. */
export interface RowLoad {
  name: string;
  load: (at: string) => string;
  past: string;
}

/** Loads of held items, once, into `<name>0 ..`; nothing where rows are read in each pass. */
export function holdItems({ width, lanes, held }: RowSpec, loads: readonly RowLoad[]): string {
  return range(held)
    .map(
      (i) => `
      let at${i} = l + ${i * lanes}u;
      let in${i} = at${i} < uniforms.n;
      ${loads.map(({ name, load, past }) => `var ${name}${i} = ${itemType(width)}(${past}); if (in${i}) { ${name}${i} = ${load(`at${i}`)}; }`).join('\n      ')}`,
    )
    .join('');
}

/** `body` for each item of the lane: `value(name)` is what a load gives, `at` its place in the row. Past items are left out. */
export function overItems(
  { lanes, held }: RowSpec,
  loads: readonly RowLoad[],
  body: (value: (name: string) => string, at: string) => string,
): string {
  if (held > 0)
    return range(held)
      .map((i) => `if (in${i}) { ${body((name) => `${name}${i}`, `at${i}`)} }`)
      .join('\n');
  return `for (var j = l; j < uniforms.n; j += ${lanes}u) {
        ${loads.map(({ name, load }) => `let ${name} = ${load('j')};`).join(' ')}
        ${body((name) => name, 'j')}
      }`;
}

/** Workgroups for so many rows. */
export function rowGrid(rows: number, { lanes, invocations }: Pick<RowSpec, 'lanes' | 'invocations'>): number[] {
  return [Math.ceil((rows * lanes) / invocations)];
}

/** `vec4f` or `f32`. */
export function itemType(width: number): string {
  return width === 4 ? 'vec4f' : 'f32';
}

/** The sum of an item's elements. */
export function itemSum(width: number, item: string): string {
  return width === 4 ? `dot(${item}, vec4f(1.0))` : item;
}
