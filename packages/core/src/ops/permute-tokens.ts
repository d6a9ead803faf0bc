import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { type Binding, type Operand, read, write } from '../kernel/bindings.js';
import { constantTable } from '../kernel/constants.js';
import { defineKernel } from '../kernel/define.js';
import { range } from '../kernel/modules.js';
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

const most = 3;
type ManySpec = MoveSpec & { count: number };
const manyRaw = ({ word }: ManySpec): string | undefined => (word === '' ? undefined : word);
const manyBindings = Object.fromEntries([
  ['order', read<ManySpec>('u32')],
  ...range(most).flatMap((n) => [
    [`x${n}`, read<ManySpec>('any', { raw: manyRaw, when: ({ count }) => n < count })],
    [`out${n}`, write<ManySpec>('any', { raw: manyRaw, when: ({ count }) => n < count })],
  ]),
]) as Record<string, Binding<ManySpec>>;

// The same for up to three tensors of one shape and dtype in one dispatch: queries, keys and values of a layer.
// tile    a word of up to 16 bytes a lane where rows allow, 256 lanes of one tensor
// bytes   reads and writes one element each, 4 a row of order
const gatherMany = defineKernel<ManySpec, Record<string, Binding<ManySpec>>, Record<string, 'u32'>>({
  name: 'permute-tokens',
  bindings: manyBindings,
  uniforms: { items: 'u32', rowItems: 'u32', tokens: 'u32', blocks: 'u32' },
  wgsl: ({ word, count }: ManySpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let block = workgroupIndex(group, groups);
      let i = block % uniforms.blocks * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = i / uniforms.rowItems;
      let origin = ((row / uniforms.tokens) * uniforms.tokens + load_order(row % uniforms.tokens)) * uniforms.rowItems + i % uniforms.rowItems;
      switch block / uniforms.blocks {
        ${range(count)
          .map((n) =>
            word === ''
              ? `case ${n}u: { store_out${n}(i, load_x${n}(origin)); }`
              : `case ${n}u: { out${n}[base_out${n}() + i] = x${n}[base_x${n}() + origin]; }`,
          )
          .join('\n        ')}
        default: {}
      }
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

/**
 * As `permuteTokens` for several tensors, in one dispatch where they have one shape and dtype.
 * @returns one tensor for each
 */
export function permuteTokensOf(tensors: readonly Tensor[], tokens: TokenOrder): Tensor[] {
  const [first] = tensors;
  const alike = tensors.every((x) => x.dtype === first?.dtype && x.shape.join() === first.shape.join());
  if (!first || !alike || tensors.length > most || first.dim(1) !== tokens.order.length)
    return tensors.map((x) => permuteTokens(x, tokens));
  return [
    ...apply<readonly Tensor[]>({
      name: 'permuteTokens',
      inputs: tensors,
      forward: () => runMany(tensors, tokens),
      backward: (cotangents) => cotangents.map((dOut) => (dOut ? run(dOut, tokens, true) : null)),
    }),
  ];
}

function runMany(tensors: readonly Tensor[], tokens: TokenOrder): Tensor[] {
  const [first] = tensors as [Tensor];
  const { device, dtype, shape } = first;
  const row = shape.slice(2).reduce((product, n) => product * n, 1);
  const { word, per } = moveWords(dtype, [row]);
  const outs = tensors.map(() => empty(device, shape, dtype));
  const items = first.size / per;
  const blocks = Math.ceil(items / 256);
  const operands: Record<string, Operand> = {
    order: constantTable(device, `${tokens.key} order`, () => tokens.order),
  };
  tensors.forEach((x, n) => {
    operands[`x${n}`] = asContiguous(x, per);
    operands[`out${n}`] = outs[n]!;
  });
  gatherMany.run(device, {
    spec: { word, count: tensors.length },
    tensors: operands,
    uniforms: { items, rowItems: row / per, tokens: first.dim(1), blocks },
    grid: [blocks * tensors.length],
  });
  return outs;
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
