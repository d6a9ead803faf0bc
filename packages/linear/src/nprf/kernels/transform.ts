// Fourier transforms in workgroup memory for the convolutions here: Stockham, radix 4 with one step of radix 2 where the length wants it.
// tile    `batch` transforms of `length` complex numbers, batch x length <= 1024; two copies take 16 KiB
// source  Govindaraju et al. 2008 (Stockham form); Bailey 1990 (four steps: lengths over 1024 are two passes with factors between)
import type { Device } from '@heed/core';
import { constantTable } from '@heed/core/~internal';

/** Complex numbers of a workgroup. */
export const workgroupLength: number = 1024;
export const transformLanes: number = 256;

/** exp(-2 pi i j / n) as pairs: float64 rounded once. */
export function twiddles(device: Device, n: number): ReturnType<typeof constantTable> {
  return constantTable(device, `nprf twiddles ${n}`, () => {
    const table = new Float32Array(2 * n);
    for (let j = 0; j < n; j++) {
      table[2 * j] = Math.cos((2 * Math.PI * j) / n);
      table[2 * j + 1] = -Math.sin((2 * Math.PI * j) / n);
    }
    return table;
  });
}

/** `var<workgroup> field`, `product` and `factor(j)` = exp(-2 pi i j / total) from the binding `twiddles`. */
export const transformText: string = `
    var<workgroup> field: array<vec2f, ${2 * workgroupLength}>;
    fn product(x: vec2f, y: vec2f) -> vec2f { return vec2f(x.x * y.x - x.y * y.y, x.x * y.y + x.y * y.x); }
    fn factor(j: u32) -> vec2f { return vec2f(load_twiddles(2u * j), load_twiddles(2u * j + 1u)); }
    fn conjugate(x: vec2f) -> vec2f { return vec2f(x.x, -x.y); }`;

/** Steps that a length takes. */
const stepsOf = (length: number): { two: boolean; fours: number } => {
  const bits = Math.round(Math.log2(length));
  return { two: bits % 2 === 1, fours: Math.floor(bits / 2) };
};

/** Where the result lies after the steps of a length that began at `from` (0 or 1024). */
export function resultAt(length: number, start: number): number {
  const { two, fours } = stepsOf(length);
  return (fours + (two ? 1 : 0)) % 2 === 0 ? start : workgroupLength - start;
}

/**
 * Transforms `batch` rows of `length` from field[start ..] in place of each other; the result lies at `resultAt`. Begins and ends with
 * all lanes in step. `uniforms.total` is the length of the table.
 */
export function transformSteps(length: number, batch: number, inverse: boolean, start: number): string {
  const { two, fours } = stepsOf(length);
  const w = (text: string): string => (inverse ? `conjugate(${text})` : text);
  const parts: string[] = [];
  let at = start;
  if (two) {
    const to = workgroupLength - at;
    parts.push(`
      for (var e = lane; e < ${(batch * length) / 2}u; e += ${transformLanes}u) {
        let row = (e / ${length / 2}u) * ${length}u;
        let i = e % ${length / 2}u;
        let x = field[${at}u + row + i];
        let y = field[${at}u + row + i + ${length / 2}u];
        field[${to}u + row + 2u * i] = x + y;
        field[${to}u + row + 2u * i + 1u] = x - y;
      }
      workgroupBarrier();`);
    at = to;
  }
  if (fours > 0) {
    const other = workgroupLength - at;
    const quarter = length / 4;
    // turn by -90 degrees, or +90 backwards
    const turn = inverse ? 'vec2f(-d.y, d.x)' : 'vec2f(d.y, -d.x)';
    parts.push(`
      {
        var input = ${at}u;
        for (var part = ${two ? 2 : 1}u; part < ${length}u; part <<= 2u) {
          let output = ${workgroupLength}u - input;
          for (var e = lane; e < ${(batch * length) / 4}u; e += ${transformLanes}u) {
            let row = (e / ${quarter}u) * ${length}u;
            let i = e % ${quarter}u;
            let k = i & (part - 1u);
            let w1 = ${w('factor(k * (uniforms.total / (4u * part)))')};
            let w2 = product(w1, w1);
            let from_ = input + row + i;
            let x0 = field[from_];
            let x1 = product(field[from_ + ${quarter}u], w1);
            let x2 = product(field[from_ + ${2 * quarter}u], w2);
            let x3 = product(field[from_ + ${3 * quarter}u], product(w1, w2));
            let a = x0 + x2;
            let b = x0 - x2;
            let c = x1 + x3;
            let d = x1 - x3;
            let t = ${turn};
            let to = output + row + 4u * (i - k) + k;
            field[to] = a + c;
            field[to + part] = b + t;
            field[to + 2u * part] = a - c;
            field[to + 3u * part] = b - t;
          }
          input = output;
          workgroupBarrier();
        }
      }`);
    at = fours % 2 === 0 ? at : other;
  }
  return parts.join('\n');
}
