// Positions as turns by trained angles: `concat` gives [x cos, x sin] a channel (TransNormerLLM's LRPE), `rotate` turns neighbouring
// pairs of channels (TransNormer's).
// tile    one lane an angle of a token and head, or four of them (two pairs)
// bytes   reads x once, writes it once (twice with `concat`)
// limits  positions below 2^31; an angle is a fraction of a turn in 32 bits and a rest in f32, so that large positions keep their digits
// source  Qin et al. 2023 (arXiv 2307.14995), section 3.1; Qin et al. 2022 (arXiv 2210.10340), code; polynomials: Cephes
import { HeedError, type Tensor } from '@heed/core';
import { apply, asContiguous, defineKernel, empty, read, write } from '@heed/core/~internal';
import { type TurnForm, turnText } from '../scan/turn-text.js';
import type { Turning, TurnKernels } from '../scan/turning.js';
import { rowWidth } from '../scan/views.js';
import { turnGradients } from './turn-gradients.js';

interface TurnSpec {
  [name: string]: string | number;
  form: TurnForm;
  direction: 'forward' | 'backward';
  /** Elements a lane: 4 where rows are fours, else 1 (a pair of them with `rotate`). */
  width: number;
}

const uniforms = {
  tokens: 'u32',
  heads: 'u32',
  headDim: 'u32',
  angles: 'u32',
  thetaHead: 'u32',
  offset: 'u32',
  items: 'u32',
  xBatch: 'u32',
  xToken: 'u32',
  xHead: 'u32',
} as const;

const kernel = defineKernel({
  name: 'linear-turns',
  bindings: {
    x: read<TurnSpec>('float', { width: (s) => s.width }),
    theta: read<TurnSpec>('f32', { width: (s) => (s.form === 'concat' ? s.width : 1) }),
    out: write<TurnSpec>('float', { width: (s) => s.width }),
  },
  uniforms,
  wgsl: (s: TurnSpec) => `
    ${turnText(s.form === 'concat' && s.width === 4 ? 'turnFour' : 'turnOne')}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let angle = i % uniforms.angles;
      let row = i / uniforms.angles;
      let head = row % uniforms.heads;
      let token = (row / uniforms.heads) % uniforms.tokens;
      let batch = row / uniforms.heads / uniforms.tokens;
      let base = batch * uniforms.xBatch + token * uniforms.xToken + head * uniforms.xHead;
      ${s.form === 'concat' ? concat(s) : s.width === 4 ? twoPairs(s.direction) : onePair(s.direction)}
    }`,
});

/** An angle, or four neighbouring ones, where all sizes and strides count fours. */
function concat({ direction, width }: TurnSpec): string {
  return `let way = ${width === 4 ? 'turnFour' : 'turnOne'}(load_theta(head * uniforms.thetaHead + angle), token + uniforms.offset);
      ${
        direction === 'forward'
          ? `let x = load_x(base + angle);
      store_out(row * 2u * uniforms.headDim + angle, x * way.cosine);
      store_out(row * 2u * uniforms.headDim + uniforms.headDim + angle, x * way.sine);`
          : 'store_out(i, load_x(base + angle) * way.cosine + load_x(base + uniforms.headDim + angle) * way.sine);'
      }`;
}

/** A pair; an odd last channel is left alone. */
function onePair(direction: TurnSpec['direction']): string {
  return `let first = 2u * angle;
      if (first + 1u == uniforms.headDim) {
        store_out(row * uniforms.headDim + first, load_x(base + first));
        return;
      }
      let way = turnOne(load_theta(angle), token + uniforms.offset);
      let sine = ${direction === 'forward' ? 'way.sine' : '-way.sine'};
      let a = load_x(base + first);
      let b = load_x(base + first + 1u);
      store_out(row * uniforms.headDim + first, a * way.cosine - b * sine);
      store_out(row * uniforms.headDim + first + 1u, b * way.cosine + a * sine);`;
}

/** Two neighbouring pairs. */
function twoPairs(direction: TurnSpec['direction']): string {
  const [less, more] = direction === 'forward' ? ['-', ''] : ['', '-'];
  return `
      let one = turnOne(load_theta(2u * angle), token + uniforms.offset);
      let two = turnOne(load_theta(2u * angle + 1u), token + uniforms.offset);
      let x = load_x(base + angle);
      let sines = vec4f(${less}one.sine, ${more}one.sine, ${less}two.sine, ${more}two.sine);
      store_out(row * uniforms.headDim + angle, x * vec4f(one.cosine, one.cosine, two.cosine, two.cosine) + x.yxwz * sines);`;
}

/**
 * Relative positions of TransNormerLLM (LRPE, section 3.1): y_t = [x_t cos(theta t), x_t sin(theta t)], so that products of two rows
 * depend on the distance of their positions alone. Angles are computed in f32 with the digits that large positions need.
 * @param x [batch, tokens, heads, headDim], f32 or f16
 * @param theta f32 [heads, headDim]; `lrpeAngles` gives the paper's
 * @param options.offset position of the first token, default 0
 * @returns [batch, tokens, heads, 2 headDim], cosines and then sines; differentiable in x and theta
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lrpe(x: Tensor, theta: Tensor, options: { offset?: number } = {}): Tensor {
  return turned('lrpe', x, theta, 'concat', options.offset ?? 0);
}

/**
 * Positions of TransNormer after their reflection: pairs of neighbouring channels (2c, 2c + 1) turned by theta_c t; an odd last
 * channel is left alone.
 * @param x [batch, tokens, heads, headDim], f32 or f16
 * @param theta f32 [floor(headDim / 2)], shared by heads
 * @param options.offset position of the first token, default 0
 * @returns the shape and dtype of x; differentiable in x and theta
 */
export function rotatePairs(x: Tensor, theta: Tensor, options: { offset?: number } = {}): Tensor {
  return turned('rotatePairs', x, theta, 'rotate', options.offset ?? 0);
}

/** Turns of the queries and keys of a scan: see `lrpe` and `rotatePairs`. */
export function turningOf(form: TurnForm, theta: Tensor, offset: number): Turning {
  return { form, theta, offset, kernels };
}

const kernels: TurnKernels = {
  copy: (x, { theta, form, offset }) => turn(x, theta, form, 'forward', offset),
  back(x, dy, turning, { dx, angles }) {
    if (angles) return turnGradients(x, dy, turning, dx);
    if (dx) turn(dy, turning.theta, turning.form, 'backward', turning.offset, dx);
    return undefined;
  },
};

function turned(who: string, x: Tensor, theta: Tensor, form: TurnForm, offset: number): Tensor {
  checkTurns(who, x, theta, form, offset);
  return apply({
    name: who,
    inputs: [x, theta],
    forward: () => turn(x, theta, form, 'forward', offset),
    saves: () => [x, theta],
    backward: ([dy], { saved: [z, angles], needs }) => {
      if (!dy || !z || !angles) return [null, null];
      const dx = needs[0] ? empty(z.device, z.shape, z.dtype) : undefined;
      const dTheta = kernels.back(z, dy, { theta: angles, form, offset }, { dx, angles: needs[1] ?? false });
      return [dx ?? null, dTheta ?? null];
    },
  });
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT: what is wrong with turns of x */
export function checkTurns(who: string, x: Tensor, theta: Tensor, form: TurnForm, offset: number): void {
  if (x.rank !== 4) throw new HeedError('SHAPE_MISMATCH', `${who}: x is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
  if (x.dtype !== 'f32' && x.dtype !== 'f16') throw new HeedError('DTYPE_MISMATCH', `${who}: x is ${x.describe()}; it must be f32 or f16`);
  const [heads, headDim] = [x.dim(2), x.dim(3)];
  const wanted = form === 'concat' ? [heads, headDim] : [Math.floor(headDim / 2)];
  if (theta.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: theta is ${theta.describe()}; angles are f32`);
  if (theta.shape.join() !== wanted.join())
    throw new HeedError('SHAPE_MISMATCH', `${who}: theta is ${theta.describe()}; for x ${x.describe()} it must be [${wanted.join(', ')}]`);
  if (!(Number.isInteger(offset) && offset >= 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: offset is ${offset}; it is the position of the first token, an integer of 0 or more`);
}

function turn(x: Tensor, thetas: Tensor, form: TurnForm, direction: TurnSpec['direction'], offset: number, into?: Tensor): Tensor {
  const theta = asContiguous(thetas);
  const [batch, tokens, heads, width] = x.shape as [number, number, number, number];
  const headDim = form === 'concat' && direction === 'backward' ? width / 2 : width;
  const wide = form === 'concat' && direction === 'forward';
  const out = into ?? empty(x.device, [batch, tokens, heads, wide ? 2 * headDim : headDim], x.dtype);
  const fours = headDim % 4 === 0 && (form === 'rotate' || theta.offset % 4 === 0) && out.offset % 4 === 0 && rowWidth(x) === 4;
  const vector = fours ? 4 : 1;
  // elements of a row in items of four; else angles
  const angles = form === 'concat' || fours ? headDim : Math.ceil(headDim / 2);
  const items = (batch * tokens * heads * angles) / vector;
  if (items === 0) return out;
  kernel.run(x.device, {
    spec: { form, direction, width: vector },
    tensors: { x, theta, out },
    uniforms: { ...sizes(x, { headDim, angles, form, offset }, vector), items },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

function sizes(
  x: Tensor,
  given: { headDim: number; angles: number; form: TurnForm; offset: number },
  width: number,
): { [K in Exclude<keyof typeof uniforms, 'items'>]: number } {
  const { headDim, angles, form, offset } = given;
  return {
    tokens: x.dim(1),
    heads: x.dim(2),
    headDim: headDim / width,
    angles: angles / width,
    thetaHead: form === 'concat' ? headDim / width : 0,
    offset,
    xBatch: (x.strides[0] ?? 0) / width,
    xToken: (x.strides[1] ?? 0) / width,
    xHead: (x.strides[2] ?? 0) / width,
  };
}
