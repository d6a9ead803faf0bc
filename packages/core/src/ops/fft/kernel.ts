import { type Operand, read, write } from '../../kernel/bindings.js';
import { constantTable } from '../../kernel/constants.js';
import { defineKernel } from '../../kernel/define.js';
import type { Device } from '../../device/device.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';

/** Longest transform of one workgroup: two f32 pairs an element in 16 KiB of workgroup memory. */
const oneWorkgroupLength = 1024;
/** Longest transform: two passes of at most 1024. */
export const longestTransform: number = oneWorkgroupLength * oneWorkgroupLength;

// Complex Fourier transforms, one workgroup each: Stockham radix 2 in workgroup memory, twiddle factors from a table.
// Element i of transform (row, part) lies at row * length + part * partIn + i * stepIn, and goes to ... * partOut, stepOut.
// Lengths over 1024 take two passes (Bailey's four steps): the first one multiplies by the factors between the passes.
// tile    1 transform x 256 lanes
// bytes   reads and writes 8 an element a pass
// source  Bailey 1990; Stockham form as in Govindaraju et al. 2008
const transforms = defineKernel({
  name: 'fft',
  bindings: {
    re: read('f32'),
    im: read('f32', { when: (spec: FftSpec) => !spec.real }),
    twiddles: read('f32'),
    outRe: write('f32'),
    outIm: write('f32'),
  },
  uniforms: { inLength: 'u32', inRow: 'u32', outRow: 'u32', partIn: 'u32', stepIn: 'u32', partOut: 'u32', stepOut: 'u32', total: 'u32' },
  wgsl: ({ length, real, between, inverse }: FftSpec) => `
    var<workgroup> a: array<vec2f, ${2 * length}>;
    fn twiddle(index: u32) -> vec2f {
      let w = vec2f(load_twiddles(2u * index), load_twiddles(2u * index + 1u));
      return ${inverse ? 'vec2f(w.x, -w.y)' : 'w'};
    }
    fn product(x: vec2f, y: vec2f) -> vec2f { return vec2f(x.x * y.x - x.y * y.y, x.x * y.y + x.y * y.x); }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let part = group.x;
      for (var i = lane; i < ${length}u; i += 256u) {
        let at = part * uniforms.partIn + i * uniforms.stepIn;
        var x = vec2f(0.0);
        // past the end of the input: zero padding
        if (at < uniforms.inLength) {
          x.x = load_re(group.y * uniforms.inRow + at);
          ${real ? '' : 'x.y = load_im(group.y * uniforms.inRow + at);'}
        }
        a[i] = x;
      }
      workgroupBarrier();
      var input = 0u;
      for (var half = 1u; half < ${length}u; half <<= 1u) {
        let output = ${length}u - input;
        for (var i = lane; i < ${Math.max(1, length / 2)}u; i += 256u) {
          let k = i % half;
          let x = a[input + i];
          let y = product(a[input + i + ${length / 2}u], twiddle(k * (uniforms.total / (2u * half))));
          let to = output + (i / half) * 2u * half + k;
          a[to] = x + y;
          a[to + half] = x - y;
        }
        input = output;
        workgroupBarrier();
      }
      for (var i = lane; i < ${length}u; i += 256u) {
        var x = a[input + i];
        ${between ? 'x = product(x, twiddle((part * i) % uniforms.total));' : ''}
        let to = group.y * uniforms.outRow + part * uniforms.partOut + i * uniforms.stepOut;
        store_outRe(to, x.x);
        store_outIm(to, x.y);
      }
    }`,
});

interface FftSpec {
  [name: string]: string | number | boolean;
  length: number;
  real: boolean;
  between: boolean;
  inverse: boolean;
}

/** cos and -sin of 2 pi j / n in pairs: float64 rounded once, where the sine of WGSL may be off by 2^-11. */
function twiddleTable(device: Device, n: number): Operand {
  return constantTable(device, `twiddles ${n}`, () => {
    const table = new Float32Array(2 * n);
    for (let j = 0; j < n; j++) {
      table[2 * j] = Math.cos((2 * Math.PI * j) / n);
      table[2 * j + 1] = -Math.sin((2 * Math.PI * j) / n);
    }
    return table;
  });
}

/**
 * Complex transform of rows, not normalised: X_k = sum_t x_t exp(-+ 2 pi i k t / n).
 * @param re [rows, m], m <= n: the rest counts as zero
 * @param im the same, or undefined for real input
 */
export function complexTransform(re: Tensor, im: Tensor | undefined, n: number, inverse: boolean): { re: Tensor; im: Tensor } {
  const { device } = re;
  const [rows, inLength] = [re.dim(0), re.dim(1)];
  const outRe = empty(device, [rows, n]);
  const outIm = empty(device, [rows, n]);
  const twiddles = twiddleTable(device, n);
  const real = im === undefined;
  if (n <= oneWorkgroupLength) {
    transforms.run(device, {
      spec: { length: n, real, between: false, inverse },
      tensors: { re, im, twiddles, outRe, outIm },
      uniforms: { inLength, inRow: inLength, outRow: n, partIn: 0, stepIn: 1, partOut: 0, stepOut: 1, total: n },
      grid: [1, rows],
    });
    return { re: outRe, im: outIm };
  }
  // n = n1 n2, t = t1 n2 + t2, k = k1 + n1 k2: transforms over t1 for each t2, factors, transforms over t2 for each k1
  const n1 = 2 ** Math.ceil(Math.log2(n) / 2);
  const n2 = n / n1;
  const midRe = empty(device, [rows, n]);
  const midIm = empty(device, [rows, n]);
  transforms.run(device, {
    spec: { length: n1, real, between: true, inverse },
    tensors: { re, im, twiddles, outRe: midRe, outIm: midIm },
    uniforms: { inLength, inRow: inLength, outRow: n, partIn: 1, stepIn: n2, partOut: 1, stepOut: n2, total: n },
    grid: [n2, rows],
  });
  transforms.run(device, {
    spec: { length: n2, real: false, between: false, inverse },
    tensors: { re: midRe, im: midIm, twiddles, outRe, outIm },
    uniforms: { inLength: n, inRow: n, outRow: n, partIn: n2, stepIn: 1, partOut: 1, stepOut: n1, total: n },
    grid: [n1, rows],
  });
  return { re: outRe, im: outIm };
}
