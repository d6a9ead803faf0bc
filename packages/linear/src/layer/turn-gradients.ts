// The way back through turns: from dy, the gradient of turned rows, that of x, turned back, and that of the angles,
// dtheta_c = sum over tokens of position times x_c's part in the derivative.
// tile    a lane sweeps 64 tokens of an angle, or of four (two pairs); sums of such strips are added up afterwards
// bytes   reads x and dy once, writes dx once; a number an angle and strip
// limits  as turns.ts; angles are computed in integers every 8 tokens and stepped between, which adds 5e-7
// source  Qin et al. 2023 (arXiv 2307.14995), section 3.1; Qin et al. 2022 (arXiv 2210.10340), code
import { reshape, sum, type Tensor } from '@heed/core';
import { asContiguous, defineKernel, empty, read, write } from '@heed/core/~internal';
import { type TurnForm, turnText } from '../scan/turn-text.js';
import { rowWidth } from '../scan/views.js';

interface GradientSpec {
  [name: string]: string | number | boolean;
  form: TurnForm;
  /** Elements a lane: 4 where rows are fours, else 1 (a pair of them with `rotate`). */
  width: number;
  /** dx is wanted. */
  dx: boolean;
}

/** Tokens a lane; tokens after which its angles are computed anew. */
const strip = 64;
const anew = 8;

const kernel = defineKernel({
  name: 'linear-turn-gradients',
  bindings: {
    x: read<GradientSpec>('float', { width: (s) => s.width }),
    dy: read<GradientSpec>('float', { width: (s) => s.width }),
    theta: read<GradientSpec>('f32', { width: (s) => (s.form === 'concat' ? s.width : 1) }),
    dx: write<GradientSpec>('float', { width: (s) => s.width, when: (s) => s.dx }),
    parts: write<GradientSpec>('f32', { width: (s) => (s.form === 'concat' ? s.width : 1) }),
  },
  uniforms: {
    tokens: 'u32',
    heads: 'u32',
    headDim: 'u32',
    across: 'u32',
    pairs: 'u32',
    thetaHead: 'u32',
    offset: 'u32',
    items: 'u32',
    strips: 'u32',
    xBatch: 'u32',
    xToken: 'u32',
    xHead: 'u32',
    dyBatch: 'u32',
    dyToken: 'u32',
    dyHead: 'u32',
  },
  wgsl: (s: GradientSpec) => {
    const { form, width, dx } = s;
    const four = width === 4;
    const [turn, real] = four ? ['turnFour', 'vec4f'] : ['turnOne', 'f32'];
    const steps = four ? (form === 'concat' ? concat(dx) : twoPairs(dx)) : form === 'concat' ? concat(dx) : onePair(dx);
    const theta =
      form === 'concat'
        ? 'load_theta(head * uniforms.thetaHead + place)'
        : four
          ? 'vec4f(vec2f(load_theta(2u * place)), vec2f(load_theta(2u * place + 1u)))'
          : 'load_theta(min(place, uniforms.pairs - 1u))';
    return `
    ${turnText(turn as 'turnFour' | 'turnOne')}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let place = i % uniforms.across;
      let head = i / uniforms.across % uniforms.heads;
      let part = i / uniforms.across / uniforms.heads;
      let batch = part / uniforms.strips;
      let start = part % uniforms.strips * ${strip}u;
      let end = min(start + ${strip}u, uniforms.tokens);
      let theta = ${theta};
      let step = ${turn}(theta, 1u);
      var cosine = ${real}();
      var sine = ${real}();
      var total = ${real}();
      for (var token = start; token < end; token++) {
        let position = token + uniforms.offset;
        if (token % ${anew}u == 0u) {
          let way = ${turn}(theta, position);
          cosine = way.cosine;
          sine = way.sine;
        }
        let fromX = batch * uniforms.xBatch + token * uniforms.xToken + head * uniforms.xHead;
        let fromDy = batch * uniforms.dyBatch + token * uniforms.dyToken + head * uniforms.dyHead;
        let row = ((batch * uniforms.tokens + token) * uniforms.heads + head) * uniforms.headDim;
        ${steps.token}
        total += f32(position) * term;
        let next = cosine * step.cosine - sine * step.sine;
        sine = sine * step.cosine + cosine * step.sine;
        cosine = next;
      }
      ${steps.end}
    }`;
  },
});

interface Steps {
  /** `term` of a token, and dx. */
  token: string;
  end: string;
}

function concat(dx: boolean): Steps {
  return {
    token: `
        let ofCosine = load_dy(fromDy + place);
        let ofSine = load_dy(fromDy + uniforms.headDim + place);
        let term = load_x(fromX + place) * (ofSine * cosine - ofCosine * sine);
        ${dx ? 'store_dx(row + place, ofCosine * cosine + ofSine * sine);' : ''}`,
    end: 'store_parts(i, total);',
  };
}

function twoPairs(dx: boolean): Steps {
  return {
    token: `
        let signed = sine * vec4f(-1.0, 1.0, -1.0, 1.0);
        let x = load_x(fromX + place);
        let dy = load_dy(fromDy + place);
        let term = dy.yxwz * (x * cosine + x.yxwz * signed) * vec4f(1.0, -1.0, 1.0, -1.0);
        ${dx ? 'store_dx(row + place, dy * cosine - dy.yxwz * signed);' : ''}`,
    end: `
      store_parts(2u * i, total.x + total.y);
      store_parts(2u * i + 1u, total.z + total.w);`,
  };
}

/** An odd last channel is a pair without a second element, which is not turned. */
function onePair(dx: boolean): Steps {
  return {
    token: `
        let alone = place == uniforms.pairs;
        let second = 2u * place + select(1u, 0u, alone);
        let a = load_x(fromX + 2u * place);
        let b = load_x(fromX + second);
        let dA = load_dy(fromDy + 2u * place);
        let dB = load_dy(fromDy + second);
        let term = dB * (a * cosine - b * sine) - dA * (b * cosine + a * sine);
        ${
          dx
            ? `store_dx(row + 2u * place, select(dA * cosine + dB * sine, dA, alone));
        if (!alone) { store_dx(row + second, dB * cosine - dA * sine); }`
            : ''
        }`,
    end: 'if (place < uniforms.pairs) { store_parts(part * uniforms.heads * uniforms.pairs + head * uniforms.pairs + place, total); }',
  };
}

/**
 * The gradient of theta that x, [batch, tokens, heads, headDim], and dy, that of turned x, give; dx is written where it is wanted.
 * @param dx contiguous, the shape of x
 */
export function turnGradients(
  x: Tensor,
  dy: Tensor,
  { theta, form, offset }: { theta: Tensor; form: TurnForm; offset: number },
  dx: Tensor | undefined,
): Tensor {
  const [batch, tokens, heads, headDim] = x.shape as [number, number, number, number];
  const angles = theta.dim(-1);
  const strips = Math.ceil(tokens / strip);
  const parts = empty(x.device, [batch * strips, heads, angles]);
  const whole = asContiguous(theta);
  const fours =
    [x, dy].every((t) => rowWidth(t) === 4) && [whole, ...(dx ? [dx] : [])].every((t) => t.offset % 4 === 0) && headDim % 4 === 0;
  const width = fours ? 4 : 1;
  const across = form === 'concat' || fours ? headDim / width : Math.ceil(headDim / 2);
  const items = batch * strips * heads * across;
  const at = (t: Tensor, axis: number): number => (t.strides[axis] ?? 0) / width;
  if (items > 0)
    kernel.run(x.device, {
      spec: { form, width, dx: dx !== undefined },
      tensors: { x, dy, theta: whole, dx, parts },
      uniforms: {
        tokens,
        heads,
        headDim: headDim / width,
        across,
        pairs: Math.floor(headDim / 2),
        thetaHead: form === 'concat' ? headDim / width : 0,
        offset,
        items,
        strips,
        xBatch: at(x, 0),
        xToken: at(x, 1),
        xHead: at(x, 2),
        dyBatch: at(dy, 0),
        dyToken: at(dy, 1),
        dyHead: at(dy, 2),
      },
      grid: [Math.ceil(items / 256)],
    });
  return reshape(sum(parts, form === 'concat' ? [0] : [0, 1]), theta.shape);
}
