import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { type Operand, read } from '../kernel/bindings.js';
import { constantTable } from '../kernel/constants.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous, moveBindings, type MoveSpec, moveText, moveWords } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

// Rows of x in another order: out[b, i, :] = x[b, order[i], :].
// tile    a word of up to 16 bytes a lane where rows allow, 256 lanes
// bytes   reads and writes one element each, 4 a row of order
const gatherTokens = defineKernel({
  name: 'permute-tokens',
  bindings: {
    ...moveBindings,
    order: read<MoveSpec>('u32'),
  },
  uniforms: { items: 'u32', rowItems: 'u32', tokensOut: 'u32', tokensIn: 'u32' },
  wgsl: (spec: MoveSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = i / uniforms.rowItems;
      let source = (row / uniforms.tokensOut) * uniforms.tokensIn + load_order(row % uniforms.tokensOut);
      ${moveText(spec, 'i', 'source * uniforms.rowItems + i % uniforms.rowItems')}
    }`,
});

/** An order of tokens with its inverse, made once and used for q, k, v and back. */
export interface TokenOrder {
  /** Says all that the order depends on; tables are cached by it. */
  key: string;
  /** Token of the original sequence at each place of the new one. */
  order: Uint32Array;
  /** Place of each original token in the new one. */
  inverse: Uint32Array;
}

/**
 * The order that walks a grid of tokens tile by tile (row-major tiles, row-major inside), so that tokens near each other
 * on the grid lie near each other in memory. Border tiles are cut, not padded.
 * @param grid tokens an axis, for instance [height, width]
 * @param tile tokens of a tile an axis
 */
export function tileOrder(grid: readonly number[], tile: readonly number[]): TokenOrder {
  if (grid.length !== tile.length || grid.length === 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `tileOrder: grid [${grid.join(', ')}] and tile [${tile.join(', ')}] must have the same number of axes, at least one`,
    );
  const tokens = grid.reduce((product, n) => product * n, 1);
  const order = new Uint32Array(tokens);
  const inverse = new Uint32Array(tokens);
  let at = 0;
  const visit = (axis: number, start: number[], from: number): void => {
    if (axis === grid.length) {
      inverse[from] = at;
      order[at++] = from;
      return;
    }
    const first = start[axis] ?? 0;
    const end = Math.min(grid[axis] ?? 1, first + (tile[axis] ?? 1));
    for (let c = first; c < end; c++) visit(axis + 1, start, from * (grid[axis] ?? 1) + c);
  };
  const walk = (axis: number, start: number[]): void => {
    if (axis === grid.length) return visit(0, start, 0);
    for (let first = 0; first < (grid[axis] ?? 1); first += tile[axis] ?? 1) walk(axis + 1, [...start, first]);
  };
  walk(0, []);
  return { key: `tiles ${grid.join('x')} by ${tile.join('x')}`, order, inverse };
}

/**
 * Tokens in another order: out[:, i] = x[:, order[i]].
 * @param x [batch, tokens, ...]
 * @param options.inverse back from the new order to the original one. Default false
 * @returns the shape of x; differentiable
 */
export function permuteTokens(x: Tensor, tokens: TokenOrder, options: { inverse?: boolean } = {}): Tensor {
  const inverse = options.inverse ?? false;
  if (x.rank < 2 || x.dim(1) !== tokens.order.length)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `permuteTokens: x is ${x.describe()}, the order "${tokens.key}" has ${tokens.order.length} tokens; axis 1 of x must have as many`,
    );
  return apply({
    name: 'permuteTokens',
    inputs: [x],
    forward: () => run(x, tokens, inverse),
    backward: ([dOut]) => [dOut ? run(dOut, tokens, !inverse) : null],
  });
}

function run(x: Tensor, tokens: TokenOrder, inverse: boolean): Tensor {
  const out = empty(x.device, x.shape, x.dtype);
  const row = x.shape.slice(2).reduce((product, n) => product * n, 1);
  const { word, per } = moveWords(x.dtype, [row]);
  const order: Operand = constantTable(x.device, `${tokens.key} ${inverse ? 'inverse' : 'order'}`, () =>
    inverse ? tokens.inverse : tokens.order,
  );
  const items = x.size / per;
  gatherTokens.run(x.device, {
    spec: { word },
    tensors: { x: asContiguous(x, per), order, out },
    uniforms: { items, rowItems: row / per, tokensOut: x.dim(1), tokensIn: x.dim(1) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}
