import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { type Operand, read, write } from '../kernel/bindings.js';
import { constantTable } from '../kernel/constants.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { expectFloat } from './check.js';
import type { Device } from '../device/device.js';

export interface RopeOptions {
  /** Frequencies are base^(-2 i / rotaryDim). Default 10,000. */
  base?: number;
  /** Position of the first token. Default 0. */
  offset?: number;
  /** Position of each token in place of offset, offset + 1, ...: u32 or i32, [tokens] or [batch, tokens]. */
  positions?: Tensor;
  /** Leading elements of each head that turn; even. Default headDim. */
  rotaryDim?: number;
  /** Pairs are (2 i, 2 i + 1) in place of (i, i + rotaryDim / 2). Default false. */
  interleaved?: boolean;
  /** Factor on positions (position interpolation, Chen et al. 2023). Default 1. */
  scaling?: number;
}

interface RopeSpec {
  [name: string]: string | number | boolean;
  interleaved: boolean;
  positions: boolean;
}

// Rotary position embedding. The angle of a pair is position x frequency in turns: the whole turns are taken off before sine and
// cosine. Positions are split into 11 low bits and the rest, the frequency in turns into parts of 12 bits, so that the products
// with whole numbers up to 2^22 are exact in f32, and so is taking their whole part off.
// tile    1 pair a lane, 256 lanes
// bytes   reads and writes one element each
// source  Su et al. 2021, eq. 15 and 34
const turned = defineKernel({
  name: 'rope',
  bindings: {
    x: read<RopeSpec>('float'),
    turns: read('f32'),
    positions: read<RopeSpec>('any', { when: (s) => s.positions }),
    out: write<RopeSpec>('float'),
  },
  uniforms: {
    pairs: 'u32',
    tokens: 'u32',
    heads: 'u32',
    headDim: 'u32',
    half: 'u32',
    offset: 'u32',
    positionBatch: 'u32',
    strideBatch: 'u32',
    strideToken: 'u32',
    strideHead: 'u32',
    sign: 'f32',
  },
  wgsl: ({ interleaved, positions }: RopeSpec) => `
    // part of a turn of position x (a 48-bit frequency in turns): each product is exact, each sum loses whole turns only
    fn partOfTurn(position: u32, pair: u32) -> f32 {
      let low = f32(position & 0x7ffu);
      let high = f32(position >> 11u);
      var sum = 0.0;
      for (var part = 0u; part < 4u; part++) {
        let frequency = load_turns(4u * pair + part);
        sum += fract(low * frequency);
        sum += fract(high * fract(2048.0 * frequency));
        sum = fract(sum);
      }
      return sum;
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.pairs) { return; }
      // pairs of a head: those that turn, then what stays, taken two by two
      let perHead = (uniforms.headDim + 1u) / 2u;
      let pair = i % perHead;
      let head = (i / perHead) % uniforms.heads;
      let token = (i / (perHead * uniforms.heads)) % uniforms.tokens;
      let batch = i / (perHead * uniforms.heads * uniforms.tokens);
      let start = batch * uniforms.strideBatch + token * uniforms.strideToken + head * uniforms.strideHead;
      let to = ((batch * uniforms.tokens + token) * uniforms.heads + head) * uniforms.headDim;
      if (pair >= uniforms.half) {
        let at = 2u * pair;
        store_out(to + at, load_x(start + at));
        if (at + 1u < uniforms.headDim) { store_out(to + at + 1u, load_x(start + at + 1u)); }
        return;
      }
      let first = ${interleaved ? '2u * pair' : 'pair'};
      let second = ${interleaved ? 'first + 1u' : 'pair + uniforms.half'};
      let position = ${positions ? 'u32(load_positions(batch * uniforms.positionBatch + token))' : 'uniforms.offset + token'};
      // half a turn less keeps the angle within [-pi, pi], where sine and cosine are accurate; both then change sign
      let angle = 6.283185307179586 * (partOfTurn(position, pair) - 0.5);
      let c = -cos(angle);
      let s = -sin(angle) * uniforms.sign;
      let a = load_x(start + first);
      let b = load_x(start + second);
      store_out(to + first, a * c - b * s);
      store_out(to + second, a * s + b * c);
    }`,
});

/** Frequencies in turns a token, each as four f32 of 12 bits that add up to it. */
function frequencyTable(device: Device, half: number, base: number, scaling: number): Operand {
  return constantTable(device, `rope ${half} ${base} ${scaling}`, () => {
    const table = new Float32Array(4 * half);
    for (let pair = 0; pair < half; pair++) {
      let rest = (base ** (-pair / half) * scaling) / (2 * Math.PI);
      for (let part = 0; part < 4; part++) {
        const unit = 2 ** (12 * (part + 1));
        const digit = part === 3 ? Math.round(rest * unit) : Math.floor(rest * unit);
        table[4 * pair + part] = digit / unit;
        rest -= digit / unit;
      }
    }
    return table;
  });
}

/**
 * Rotary position embedding: pairs of elements turn by an angle that grows with the position.
 * @param x [batch, tokens, heads, headDim], f32 or f16; outer axes may be strided (a part of a fused projection)
 * @returns the shape and dtype of x; differentiable (the way back turns the other way)
 * @throws HeedError SHAPE_MISMATCH when x is not of rank 4, rotaryDim is odd or larger than headDim, or positions do not fit
 */
export function rope(x: Tensor, options: RopeOptions = {}): Tensor {
  expectFloat('rope', 'x', x);
  const { base = 10_000, offset = 0, positions, interleaved = false, scaling = 1 } = options;
  if (x.rank !== 4) throw new HeedError('SHAPE_MISMATCH', `rope: x is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
  const [batch, tokens, heads, headDim] = [x.dim(0), x.dim(1), x.dim(2), x.dim(3)];
  const rotaryDim = options.rotaryDim ?? headDim;
  if (rotaryDim % 2 !== 0 || rotaryDim > headDim || rotaryDim < 0)
    throw new HeedError('SHAPE_MISMATCH', `rope: rotaryDim is ${rotaryDim} for heads of ${headDim}; use an even number up to ${headDim}`);
  if (!Number.isInteger(offset) || offset < 0 || offset + tokens > 2 ** 22)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `rope: positions ${offset} to ${offset + tokens - 1} were asked for; they must be whole numbers below 4,194,304`,
    );
  if (positions) checkPositions(positions, batch, tokens);
  const perHead = Math.ceil(headDim / 2);
  const turns = frequencyTable(x.device, Math.max(1, rotaryDim / 2), base, scaling);
  const run = (source: Tensor, where: Tensor | undefined, sign: number): Tensor => {
    const out = empty(x.device, x.shape, source.dtype);
    const pairs = batch * tokens * heads * perHead;
    turned.run(x.device, {
      spec: { interleaved, positions: where !== undefined },
      tensors: { x: source, turns, positions: where && asContiguous(where, 1), out },
      uniforms: {
        pairs,
        tokens,
        heads,
        headDim,
        half: rotaryDim / 2,
        offset,
        positionBatch: where && where.rank === 2 ? tokens : 0,
        strideBatch: source.strides[0] ?? 0,
        strideToken: source.strides[1] ?? 0,
        strideHead: source.strides[2] ?? 0,
        sign,
      },
      grid: [Math.ceil(pairs / 256)],
    });
    return out;
  };
  return apply({
    name: 'rope',
    inputs: positions ? [x, positions] : [x],
    forward: () => run(x, positions, 1),
    saves: () => (positions ? [positions] : []),
    backward: ([g], { saved: [where] }) => [g ? run(g, where, -1) : null, null].slice(0, positions ? 2 : 1),
  });
}

function checkPositions(positions: Tensor, batch: number, tokens: number): void {
  const fits = positions.shape.join() === String(tokens) || positions.shape.join() === [batch, tokens].join();
  if (!fits || (positions.dtype !== 'u32' && positions.dtype !== 'i32')) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `rope: positions is ${positions.describe()}; it must be u32 or i32, [${tokens}] or [${batch}, ${tokens}]`,
    );
  }
}
