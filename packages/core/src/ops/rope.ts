import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { range } from '../kernel/modules.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { asContiguous } from '../tensor/copy.js';
import { expectDType, expectFloat } from './check.js';
import { checkScaling, ropeMagnitude, type RopeScaling, turnTable } from './rope-frequencies.js';

export { ropeFrequencies, type RopeFrequencies, type RopeScaling } from './rope-frequencies.js';

export interface RopeOptions {
  /** Default 10,000. */
  base?: number | undefined;
  /** Position of each token, i32 or u32, [tokens] or [batch, tokens]. Default: 0, 1, 2, ... */
  positions?: Tensor | undefined;
  /** Added to every position: tokens that came before. Default 0. */
  offset?: number | undefined;
  /** Pairs are neighbours (2i, 2i + 1); default false: elements i and i + rotaryDim / 2, as in Llama. */
  interleaved?: boolean | undefined;
  /** Leading elements of a head that are rotated; the others pass. Default: all. */
  rotaryDim?: number | undefined;
  /** Stretched frequencies for longer contexts. Default: none. */
  scaling?: RopeScaling | undefined;
}

// Rotates pairs of elements by position x frequency.
// tile    4 pairs (or 1) a lane at one token, up to 4 heads, which share sine and cosine
// bytes   reads and writes x once
// limits  |position + offset| < 2^31; angles are reduced in 64-bit fixed point, so they are right to 1e-6 radians at any position
// source  Su et al. 2021, eq. 34; sine and cosine: Cephes' polynomials on [-pi/4, pi/4]
type RopeSpec = { width: 1 | 4; interleaved: boolean; positions: 'none' | 'token' | 'batch' };

const kernel = defineKernel({
  name: 'rope',
  bindings: {
    x: read<RopeSpec>('float', { width: (spec) => spec.width }),
    table: read<RopeSpec>('u32'),
    positions: read<RopeSpec>('any', { when: (spec) => spec.positions !== 'none' }),
    out: write<RopeSpec>('float', { width: (spec) => spec.width }),
  },
  uniforms: {
    tokens: 'u32',
    heads: 'u32',
    headDim: 'u32',
    rotaryDim: 'u32',
    xBatch: 'u32',
    xToken: 'u32',
    xHead: 'u32',
    headsPerLane: 'u32',
    items: 'u32',
    offset: 'i32',
    direction: 'f32',
    magnitude: 'f32',
  },
  wgsl: (spec: RopeSpec) => `
    fn highProduct(a: u32, b: u32) -> u32 {
      let middle = (a & 0xffffu) * (b >> 16u) + (((a & 0xffffu) * (b & 0xffffu)) >> 16u);
      let carried = (a >> 16u) * (b & 0xffffu) + (middle & 0xffffu);
      return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (carried >> 16u);
    }
    // cosine and sine of position x frequency of a pair; the angle is a fraction of a turn in 32 bits
    fn rotation(pair: u32, position: i32) -> vec2f {
      let steps = u32(abs(position));
      let phase = steps * load_table(2u * pair) + highProduct(steps, load_table(2u * pair + 1u));
      let quarter = (phase + 0x20000000u) >> 30u;
      let r = f32(bitcast<i32>(phase - (quarter << 30u))) * ${(2 * Math.PI) / 2 ** 32};
      let z = r * r;
      let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
      let c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
      let odd = (quarter & 1u) == 1u;
      let cosine = select(c, s, odd) * select(1.0, -1.0, quarter == 1u || quarter == 2u);
      let sine = select(s, c, odd) * select(1.0, -1.0, quarter >= 2u);
      return vec2f(cosine, sine * select(uniforms.direction, -uniforms.direction, position < 0)) * uniforms.magnitude;
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups) * 256u + lane;
      if (index >= uniforms.items) { return; }
      let turned = uniforms.rotaryDim / ${spec.interleaved && spec.width === 4 ? 4 : 2 * spec.width}u;
      let perHead = turned + (uniforms.headDim - uniforms.rotaryDim) / ${spec.width}u;
      let item = index % perHead;
      let blocks = (uniforms.heads + uniforms.headsPerLane - 1u) / uniforms.headsPerLane;
      let firstHead = index / perHead % blocks * uniforms.headsPerLane;
      let token = index / perHead / blocks % uniforms.tokens;
      let b = index / perHead / blocks / uniforms.tokens;
      let position = uniforms.offset + ${spec.positions === 'none' ? 'i32(token)' : `i32(load_positions(${spec.positions === 'batch' ? 'b * uniforms.tokens + ' : ''}token))`};
      let lastHead = min(firstHead + uniforms.headsPerLane, uniforms.heads);
      let rows = (b * uniforms.tokens + token) * uniforms.heads;
      let start = b * uniforms.xBatch + token * uniforms.xToken;
      if (item >= turned) {
        let at = (uniforms.rotaryDim + (item - turned) * ${spec.width}u);
        for (var head = firstHead; head < lastHead; head++) {
          store_out(((rows + head) * uniforms.headDim + at) / ${spec.width}u, load_x((start + head * uniforms.xHead + at) / ${spec.width}u));
        }
        return;
      }
      ${spec.interleaved ? interleavedText(spec.width) : halvesText(spec.width)}
    }`,
});

function halvesText(width: 1 | 4): string {
  const pairs = range(width).map((i) => `let r${i} = rotation(item * ${width}u + ${i}u, position);`);
  const gather = (axis: 'x' | 'y'): string =>
    width === 1
      ? `r0.${axis}`
      : `vec4f(${range(4)
          .map((i) => `r${i}.${axis}`)
          .join(', ')})`;
  return `
      ${pairs.join('\n')}
      let cosine = ${gather('x')};
      let sine = ${gather('y')};
      let half = uniforms.rotaryDim / ${2 * width}u;
      for (var head = firstHead; head < lastHead; head++) {
        let source = (start + head * uniforms.xHead) / ${width}u + item;
        let to = (rows + head) * uniforms.headDim / ${width}u + item;
        let low = load_x(source);
        let high = load_x(source + half);
        store_out(to, low * cosine - high * sine);
        store_out(to + half, high * cosine + low * sine);
      }`;
}

function interleavedText(width: 1 | 4): string {
  if (width === 1) {
    return `
      let r = rotation(item, position);
      for (var head = firstHead; head < lastHead; head++) {
        let source = start + head * uniforms.xHead + 2u * item;
        let to = (rows + head) * uniforms.headDim + 2u * item;
        let low = load_x(source);
        let high = load_x(source + 1u);
        store_out(to, low * r.x - high * r.y);
        store_out(to + 1u, high * r.x + low * r.y);
      }`;
  }
  return `
      let r0 = rotation(item * 2u, position);
      let r1 = rotation(item * 2u + 1u, position);
      for (var head = firstHead; head < lastHead; head++) {
        let v = load_x((start + head * uniforms.xHead) / 4u + item);
        let turnedBy = vec4f(-v.y * r0.y, v.x * r0.y, -v.w * r1.y, v.z * r1.y);
        store_out((rows + head) * uniforms.headDim / 4u + item, v * vec4f(r0.x, r0.x, r1.x, r1.x) + turnedBy);
      }`;
}

/**
 * Rotary position embedding: pairs of elements of each head turn by position x frequency, in f32.
 *
 * Differentiable in x (the gradient turns back). Angles are exact at any position that i32 holds, also at a million tokens.
 *
 * @param x queries or keys, [batch, tokens, heads, headDim], f32 or f16; views are read in place
 * @returns the shape and dtype of x
 * @throws HeedError SHAPE_MISMATCH when x has not four axes, rotaryDim is odd or larger than headDim, or positions do not fit;
 *   DTYPE_MISMATCH for positions other than i32 or u32; INVALID_ARGUMENT for a base, offset or scaling out of range
 */
export function rope(x: Tensor, options: RopeOptions = {}): Tensor {
  const { base = 10_000, positions, offset = 0, interleaved = false } = options;
  checkRope(x, options);
  const headDim = x.dim(-1);
  const rotaryDim = options.rotaryDim ?? headDim;
  const rotate = (from: Tensor, at: Tensor | undefined, direction: 1 | -1): Tensor => {
    const out = empty(x.device, x.shape, x.dtype);
    const [batch = 1, tokens = 0, heads = 0] = x.shape;
    const [xBatch = 0, xToken = 0, xHead = 0] = from.strides;
    const aligned = [from.offset, xBatch, xToken, xHead, headDim, rotaryDim].every((n) => n % 4 === 0);
    const width = aligned && (interleaved || rotaryDim % 8 === 0) ? 4 : 1;
    const perHead = rotaryDim / (interleaved && width === 4 ? 4 : 2 * width) + (headDim - rotaryDim) / width;
    // long sequences have lanes enough to share an angle among heads
    const headsPerLane = batch * tokens >= 1024 ? 4 : 1;
    const items = batch * tokens * Math.ceil(heads / headsPerLane) * perHead;
    const table = turnTable(x.device, rotaryDim, base, options.scaling);
    kernel.run(x.device, {
      spec: { width, interleaved, positions: at === undefined ? 'none' : at.rank === 1 ? 'token' : 'batch' },
      tensors: { x: from, table, positions: at && asContiguous(at), out },
      uniforms: {
        tokens,
        heads,
        headDim,
        rotaryDim,
        xBatch,
        xToken,
        xHead,
        headsPerLane,
        items,
        offset,
        direction,
        magnitude: ropeMagnitude(options.scaling),
      },
      grid: [Math.ceil(items / 256)],
    });
    return out;
  };
  return apply({
    name: 'rope',
    inputs: positions ? [x, positions] : [x],
    forward: () => rotate(x, positions, 1),
    saves: () => (positions ? [positions] : []),
    backward: ([dOut], { saved }) => [dOut ? rotate(dOut, saved[0], -1) : null, ...(positions ? [null] : [])],
  });
}

function checkRope(x: Tensor, { base = 10_000, positions, offset = 0, rotaryDim, scaling }: RopeOptions): void {
  expectFloat('rope', 'x', x);
  if (x.rank !== 4) throw new HeedError('SHAPE_MISMATCH', `rope: x is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
  const [batch, tokens] = x.shape;
  const turned = rotaryDim ?? x.dim(-1);
  if (!Number.isInteger(turned) || turned % 2 !== 0 || turned < 2 || turned > x.dim(-1))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `rope: rotaryDim is ${turned}, x is ${x.describe()}; it must be even, from 2 to the head dimension ${x.dim(-1)}`,
    );
  if (!(base > 1) || !Number.isFinite(base)) throw new HeedError('INVALID_ARGUMENT', `rope: base is ${base}; use a number above 1`);
  if (!Number.isInteger(offset) || Math.abs(offset) >= 2 ** 31)
    throw new HeedError('INVALID_ARGUMENT', `rope: offset is ${offset}; use an integer below 2^31 in size`);
  checkScaling(scaling);
  if (!positions) return;
  expectDType('rope', 'positions', positions, ['i32', 'u32']);
  const fits =
    positions.rank === 1 ? positions.dim(0) === tokens : positions.rank === 2 && positions.dim(0) === batch && positions.dim(1) === tokens;
  if (!fits)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `rope: positions is ${positions.describe()}, x is ${x.describe()}; use [${tokens}] or [${batch}, ${tokens}]`,
    );
}
