import type { Operand } from '../../kernel/bindings.js';
import type { Load } from './plan.js';

// Elements that lie anywhere, taken out of aligned loads: `at` is the element that they begin with. Two loads and some moves
// take the place of a load and a conversion for each element.

// `eightFrom(a, b, at)`: eight halves of the sixteen in a and b
const halvesText = `
  fn eightFrom(a: vec4u, b: vec4u, at: u32) -> vec4u {
    let byFour = at % 8u >= 4u;
    let four = select(a, vec4u(a.zw, b.xy), byFour);
    let next = select(b.xy, b.zw, byFour);
    let byTwo = at % 4u >= 2u;
    let two = select(four, vec4u(four.yzw, next.x), byTwo);
    let last = select(next.x, next.y, byTwo);
    return select(two, (two >> vec4u(16u)) | (vec4u(two.yzw, last) << vec4u(16u)), at % 2u == 1u);
  }`;
/** `firstHalves(x, n)`: the first n of eight halves, zeros behind. */
export const firstHalvesText = `
  fn firstHalves(x: vec4u, n: u32) -> vec4u {
    let begins = vec4u(0u, 2u, 4u, 6u);
    return select(vec4u(), select(x & vec4u(0xffffu), x, begins + vec4u(1u) < vec4u(n)), begins < vec4u(n));
  }`;
// `fourFrom(a, b, at)`: four elements of the eight in a and b
const foursText = `
  fn fourFrom(a: vec4f, b: vec4f, at: u32) -> vec4f {
    let byTwo = at % 4u >= 2u;
    let two = select(a, vec4f(a.zw, b.xy), byTwo);
    return select(two, vec4f(two.yzw, select(b.x, b.z, byTwo)), at % 2u == 1u);
  }`;

/** Functions that kernels with these loads need. */
export function shiftedText(loads: readonly Load[]): string {
  const [eights, fours] = [loads.includes('half8Shifted'), loads.includes('vec4Shifted')];
  return `${eights ? halvesText : ''} ${fours ? foursText : ''}`;
}

export function isShifted(load: Load): boolean {
  return load === 'half8Shifted' || load === 'vec4Shifted';
}

/** Elements from an aligned one to the operand's first, where its loads are shifted. */
export function restOf(operand: Operand, load: Load): number {
  return isShifted(load) ? operand.offset % 8 : 0;
}

/** The operand from `rest` elements before its first one on. */
export function alignedDown(operand: Operand, rest: number): Operand {
  if (rest === 0) return operand;
  const { storage, dtype, offset, extent, label, shape } = operand;
  return { storage, dtype, offset: offset - rest, extent: extent + rest, label, ...(shape ? { shape } : {}) };
}
