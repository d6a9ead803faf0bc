import type { Capabilities } from '../../device/capabilities.js';
import type { Operand, Spec } from '../../kernel/bindings.js';
import { type Activation, activationExpr, expressionFunction } from './activation.js';

// Text and run-time values that the product kernels share.

/** What every product kernel is specialised by besides its tile. */
export interface OutSpec extends Spec {
  /** Sums of parts of K go to an f32 array [splits, matrices, M, N] without an epilogue. */
  partial: boolean;
  outWidth: 1 | 4;
  bias: boolean;
  activation: Activation | 'none';
  addTo: boolean;
}

export const matmulUniforms: {
  readonly batch: 'u32x8';
  readonly batchStrides: 'u32x8';
} & Readonly<
  Record<'M' | 'N' | 'K' | 'rowA' | 'rowB' | 'rowOut' | 'matrices' | 'splits' | 'splitDepth' | 'total' | 'restA' | 'restB', 'u32'>
> = {
  batch: 'u32x8',
  batchStrides: 'u32x8',
  M: 'u32',
  N: 'u32',
  K: 'u32',
  rowA: 'u32',
  rowB: 'u32',
  rowOut: 'u32',
  matrices: 'u32',
  splits: 'u32',
  splitDepth: 'u32',
  total: 'u32',
  restA: 'u32',
  restB: 'u32',
};

/** What a product kernel is run with. */
export interface ProductCall {
  tensors: { a: Operand; b: Operand; out: Operand; bias?: Operand | undefined; addTo?: Operand | undefined };
  uniforms: { readonly [K in keyof typeof matmulUniforms]: (typeof matmulUniforms)[K] extends 'u32x8' ? readonly number[] : number };
  grid: readonly [number];
}

/**
 * `placeOf(index)`: which matrix and part of K workgroup tile `index` (matrices x splits) is, and where its operands begin.
 * `batch` holds the four batch lengths and strides of out, `batchStrides` those of a and b; `restA` and `restB` are elements
 * between what is bound and the operands' first ones.
 */
export function placeText(partial: boolean): string {
  return `
    struct Place { a: u32, b: u32, out: u32, kBegin: u32, kEnd: u32 }
    fn batchIndex(matrix: u32) -> vec4u {
      let n = uniforms.batch[0];
      let outer = matrix / n.w;
      let middle = outer / n.z;
      return vec4u(middle / n.y, middle % n.y, outer % n.z, matrix % n.w);
    }
    fn placeOf(index: u32) -> Place {
      let split = index % uniforms.splits;
      let matrix = index / uniforms.splits;
      let at = batchIndex(matrix);
      let kBegin = split * uniforms.splitDepth;
      return Place(
        dot(at, uniforms.batchStrides[0]) + uniforms.restA, dot(at, uniforms.batchStrides[1]) + uniforms.restB,
        ${partial ? '(split * uniforms.matrices + matrix) * uniforms.M * uniforms.N' : 'dot(at, uniforms.batch[1])'},
        min(kBegin, uniforms.K), min(kBegin + uniforms.splitDepth, uniforms.K));
    }`;
}

/**
 * A loop bound that a compiler cannot see, in a kernel whose entry has `groups`. Software drivers turn an unrolled loop over
 * workgroup memory into seconds of compilation; GPUs (wide subgroups) gain by unrolling, and get the plain number.
 */
export function loopBound(n: number, capabilities: Capabilities): string {
  return capabilities.subgroupMinSize >= 16 ? `${n}u` : `${n - 1}u + min(groups.x, 1u)`;
}

/**
 * `finishOne(at, column, value)` and `finishFour(at, column, value)`: bias, activation, addend and store of one element, or of
 * four neighbours of which those below N exist, at element `at` of out.
 */
export function epilogueText(spec: OutSpec): string {
  const { activation } = spec;
  const value = (four: boolean): string => {
    const suffix = four ? '4' : '';
    const bias = four
      ? 'vec4f(load_bias(column), load_bias(column + 1u), load_bias(column + 2u), load_bias(column + 3u))'
      : 'load_bias(column)';
    return [
      `var v = value;`,
      spec.bias ? `v += ${bias};` : '',
      activation === 'none' ? '' : `v = activate${suffix}(v);`,
      spec.addTo ? `v += load_addTo(at${four ? ' / 4u' : ''});` : '',
      `store_out(at${four ? ' / 4u' : ''}, v);`,
    ].join('\n');
  };
  const one = `fn finishOne(at: u32, column: u32, value: f32) { ${value(false)} }`;
  const four =
    spec.outWidth === 4
      ? `fn finishFour(at: u32, column: u32, value: vec4f) { if (column < uniforms.N) { ${value(true)} } }`
      : `fn finishFour(at: u32, column: u32, value: vec4f) {
          for (var j = 0u; j < 4u; j++) { if (column + j < uniforms.N) { finishOne(at + j, column + j, value[j]); } }
        }`;
  return `
    ${activation === 'none' ? '' : expressionFunction('activate', activationExpr(activation))}
    ${spec.outWidth === 4 ? four : `${one}\n${four}`}`;
}

/**
 * `Tile { row, column, rest }` of a workgroup: tiles of one matrix go in bands of 8 tile rows, so that workgroups that run
 * at the same time share operand tiles in the cache; `rest` is the index for `placeOf`.
 */
export function tileText(rows: number, columns: number): string {
  return `
    struct Tile { row: u32, column: u32, rest: u32 }
    fn tileOf(index: u32) -> Tile {
      let down = (uniforms.M + ${rows - 1}u) / ${rows}u;
      let across = (uniforms.N + ${columns - 1}u) / ${columns}u;
      let inMatrix = index % (down * across);
      let first = inMatrix / (8u * across) * 8u;
      let band = min(down - first, 8u);
      let inBand = inMatrix - first * across;
      return Tile((first + inBand % band) * ${rows}u, inBand / band * ${columns}u, index / (down * across));
    }`;
}
