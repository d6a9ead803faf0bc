import { apply } from '../../autodiff/tape.js';
import { HeedError } from '../../errors.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import { contiguousStrides, type Tensor } from '../../tensor/tensor.js';
import { complexTransform, longestTransform } from './kernel.js';

// Copies the first `count` of each row times a factor an element: edge at both ends of a half spectrum, inner between.
// With `mirror` rows of n are written from half spectra of n / 2 + 1: X_(n-k) is the conjugate of X_k.
// tile    1 element a lane, 256 lanes
// bytes   reads 4 (nothing past the end of a row), writes 4 an element
// limits  edge bins are 0 and n / 2
const scaleRows = defineKernel({
  name: 'fft-rows',
  bindings: { x: read('f32'), out: write('f32') },
  uniforms: { rows: 'u32', bins: 'u32', kept: 'u32', n: 'u32', edge: 'f32', inner: 'f32', sign: 'f32' },
  wgsl: ({ mirror }: { mirror: boolean }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * uniforms.kept) { return; }
      let row = i / uniforms.kept;
      let k = i % uniforms.kept;
      let lower = ${mirror ? 'min(k, uniforms.n - k)' : 'k'};
      let isEdge = lower == 0u || 2u * lower == uniforms.n;
      var value = 0.0;
      if (lower < uniforms.bins) { value = load_x(row * uniforms.bins + lower) * select(uniforms.inner, uniforms.edge, isEdge); }
      ${mirror ? 'if (2u * k > uniforms.n) { value *= uniforms.sign; }' : ''}
      // what is imaginary (sign -1) at the ends of the spectrum of a real signal is zero
      if (isEdge && uniforms.sign < 0.0) { value = 0.0; }
      store_out(i, value);
    }`,
});

interface RowScale {
  to: number;
  n: number;
  edge: number;
  inner: number;
  /** -1 for imaginary parts of half spectra. */
  sign?: number;
  mirror?: boolean;
}

function rowsOf(x: Tensor, { to, n, edge, inner, sign = 1, mirror = false }: RowScale): Tensor {
  const rows = x.dim(0);
  const out = empty(x.device, [rows, to]);
  scaleRows.run(x.device, {
    spec: { mirror },
    tensors: { x, out },
    uniforms: { rows, bins: x.dim(1), kept: to, n, edge, inner, sign },
    grid: [Math.ceil((rows * to) / 256)],
  });
  return out;
}

function asRows(x: Tensor): Tensor {
  const last = x.dim(-1);
  return asContiguous(x, 1).view({ shape: [last === 0 ? 0 : x.size / last, last], strides: [last, 1] });
}

function asShape(x: Tensor, outer: readonly number[]): Tensor {
  const shape = [...outer, x.dim(-1)];
  return x.view({ shape, strides: contiguousStrides(shape) });
}

function checkLength(who: string, n: number): void {
  if (!Number.isInteger(n) || n < 2 || n > longestTransform || 2 ** Math.round(Math.log2(n)) !== n) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: length is ${n}; use a power of two from 2 to ${longestTransform} (pad with zeros up to it)`,
    );
  }
}

function checkReal(who: string, x: Tensor): void {
  if (x.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: ${x.describe()} must be f32; cast it first`);
}

/**
 * Fourier transform of real rows: X_k = sum_t x_t exp(-2 pi i k t / length), k = 0 .. length / 2.
 * @param x f32 [..., m] with m <= length; padded with zeros at the end
 * @param options.length a power of two, 2 to 1,048,576. Default: the least one that holds m
 * @returns real and imaginary parts, f32 [..., length / 2 + 1]; differentiable
 */
export function rfft(x: Tensor, options: { length?: number } = {}): { real: Tensor; imaginary: Tensor } {
  const m = x.dim(-1);
  const n = options.length ?? Math.max(2, 2 ** Math.ceil(Math.log2(Math.max(1, m))));
  checkLength('rfft', n);
  checkReal('rfft', x);
  if (m > n) throw new HeedError('SHAPE_MISMATCH', `rfft: rows of x have ${m} elements, more than the length ${n}; choose a larger length`);
  const outer = x.shape.slice(0, -1);
  const [real, imaginary] = apply<readonly Tensor[]>({
    name: 'rfft',
    inputs: [x],
    forward: () => {
      const spectrum = complexTransform(asRows(x), undefined, n, false);
      const half = { to: n / 2 + 1, n, edge: 1, inner: 1 };
      return [asShape(rowsOf(spectrum.re, half), outer), asShape(rowsOf(spectrum.im, { ...half, sign: -1 }), outer)];
    },
    backward: ([dReal, dImaginary]) => {
      const part = dReal ?? dImaginary;
      if (!part) return [null];
      // dx_t = Re sum_k (dReal_k + i dImaginary_k) exp(2 pi i k t / n) over the half spectrum
      const blank = rowsOf(asRows(part), { to: n / 2 + 1, n, edge: 0, inner: 0 });
      const re = dReal ? asRows(dReal) : blank;
      const im = dImaginary ? rowsOf(asRows(dImaginary), { to: n / 2 + 1, n, edge: 1, inner: 1, sign: -1 }) : blank;
      const back = complexTransform(re, im, n, true);
      return [asShape(rowsOf(back.re, { to: m, n, edge: 1, inner: 1 }), outer)];
    },
  }) as readonly [Tensor, Tensor];
  return { real, imaginary };
}

/**
 * Back from a half spectrum to real rows: the inverse of `rfft`, normalised by 1 / length. Imaginary parts of the first
 * and last bin have no meaning and are ignored.
 * @param real f32 [..., length / 2 + 1]
 * @param imaginary the same shape
 * @param options.keep elements of each row to return. Default: length
 * @returns f32 [..., keep]; differentiable
 */
export function irfft(real: Tensor, imaginary: Tensor, options: { keep?: number } = {}): Tensor {
  if (real.shape.join() !== imaginary.shape.join())
    throw new HeedError('SHAPE_MISMATCH', `irfft: real ${real.describe()} and imaginary ${imaginary.describe()} differ in shape`);
  const bins = real.dim(-1);
  const n = 2 * (bins - 1);
  checkLength('irfft', n);
  checkReal('irfft', real);
  checkReal('irfft', imaginary);
  const keep = options.keep ?? n;
  const outer = real.shape.slice(0, -1);
  return apply({
    name: 'irfft',
    inputs: [real, imaginary],
    forward: () => {
      const mirror = { to: n, n, edge: 1 / n, inner: 1 / n, mirror: true };
      const back = complexTransform(rowsOf(asRows(real), mirror), rowsOf(asRows(imaginary), { ...mirror, sign: -1 }), n, true);
      return asShape(rowsOf(back.re, { to: keep, n, edge: 1, inner: 1 }), outer);
    },
    backward: ([dOut]) => {
      if (!dOut) return [null, null];
      const spectrum = complexTransform(asRows(dOut), undefined, n, false);
      const half = { to: bins, n, edge: 1 / n, inner: 2 / n };
      return [asShape(rowsOf(spectrum.re, half), outer), asShape(rowsOf(spectrum.im, { ...half, sign: -1 }), outer)];
    },
  });
}
