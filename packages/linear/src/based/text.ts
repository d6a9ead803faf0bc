import { unroll, wgslFloat } from '@heed/core/~internal';
import { type RowStrides, rowStrides } from '../scan/strides.js';
import { coordinateBlocks, featureBlocks, symmetricFeatures } from './layout.js';

// Pieces of WGSL that the kernels of the Taylor map share.

/** `pairs[p]`: coordinate blocks I and J of feature block p, I + 65536 J; filled before a barrier. */
export function blockPairs(featureDim: number): { declare: string; fill: (lanes: number) => string } {
  const blocks = featureBlocks(featureDim);
  return {
    declare: `var<workgroup> pairs: array<u32, ${4 * Math.ceil(blocks / 4)}>;`,
    fill: (lanes: number): string => `
      for (var p = lane; p < ${blocks}u; p += ${lanes}u) {
        var row = 0u;
        var column = p;
        loop {
          let own = ${coordinateBlocks(featureDim)}u - row;
          if (column < own) { break; }
          column -= own;
          row++;
        }
        pairs[p] = row + 65536u * (row + column);
      }`,
  };
}

/**
 * `featureRow(x, y, r, pair)`: features 4 r .. 4 r + 3 of the block of coordinate blocks x and y (see layout.ts), and `stateIndex(pair, r, c)`:
 * the place of feature (r, c) of a block in the compressed order 1, x_i, x_i x_j for i <= j; `noFeature` for padding.
 */
export function featureText(featureDim: number): string {
  const half = wgslFloat(Math.SQRT1_2);
  return `
    const noFeature = 0xffffffffu;
    fn featureRow(x: vec4f, y: vec4f, r: u32, pair: u32) -> vec4f {
      let row = pair & 0xffffu;
      let own = dot(select(vec4f(), x, vec4u(0u, 1u, 2u, 3u) == vec4u(r)), vec4f(1.0));
      var features = own * y;
      if (row == pair >> 16u) {
        let column = vec4u(0u, 1u, 2u, 3u);
        let last = vec4f(x.w, select(0.0, 1.0, row == 0u), 0.0, 0.0);
        let linear = select(select(last, vec4f(x.y, x.z, 0.0, 0.0), r == 2u), vec4f(x.x, 0.0, 0.0, 0.0), r == 1u);
        features = select(select(features, features * ${half}, column == vec4u(r)), linear, column < vec4u(r));
      }
      return features;
    }
    fn stateIndex(pair: u32, r: u32, c: u32) -> u32 {
      let row = pair & 0xffffu;
      let column = pair >> 16u;
      if (row == column && c < r) {
        if (r == 3u && c > 0u) { return select(noFeature, 0u, row == 0u && c == 1u); }
        // (1, 0), (2, 0), (2, 1), (3, 0) are coordinates 0 .. 3
        let i = 4u * row + select(r - 1u + c, 3u, r == 3u);
        return select(noFeature, 1u + i, i < ${featureDim}u);
      }
      let i = 4u * row + r;
      let j = 4u * column + c;
      return select(noFeature, ${1 + featureDim}u + (i * (${2 * featureDim}u - 1u - i)) / 2u + j, i < ${featureDim}u && j < ${featureDim}u);
    }`;
}

/** Strides of the operands of both scan kernels. */
export const basedStrides: RowStrides<'q' | 'k' | 'v' | 'd' | 'out'> = /* @__PURE__ */ rowStrides('q', 'k', 'v', 'd', 'out');

/** Their other run-time values. */
export const basedUniforms = {
  tokens: 'u32',
  heads: 'u32',
  segments: 'u32',
  segmentTokens: 'u32',
  stateSegments: 'u32',
  columnTiles: 'u32',
  workgroups: 'u32',
  featureScale: 'f32',
  epsilon: 'f32',
  reverse: 'u32',
} as const;

/** Declares place, length, the segment's tokens and where its state begins, in features; `index` is the workgroup's. */
export function segmentText(featureDim: number, lengths: boolean): string {
  return `
      let place = segmentOf(index);
      let head = place.y;
      let batch = place.w;
      let length = ${lengths ? 'min(u32(max(load_lengths(batch), 0)), uniforms.tokens)' : 'uniforms.tokens'};
      let firstToken = place.z * uniforms.segmentTokens;
      let first = min(firstToken, length);
      let end = min(first + uniforms.segmentTokens, length);
      let pairIndex = batch * uniforms.heads + head;
      let stateFirst = (pairIndex * uniforms.stateSegments + min(place.z, uniforms.stateSegments - 1u)) * ${symmetricFeatures(featureDim)}u;`;
}

/**
 * The 16 vectors of a state that a lane holds. Named variables where a GPU compiles them: indexed arrays fall out of registers. On a
 * software device an array in loops whose bound its compiler cannot see: unrolled, one kernel takes it a minute.
 */
export class HeldState {
  constructor(readonly unrolled: boolean) {}

  /** After `groups`, the builtin, is known. */
  declare(): string {
    return this.unrolled
      ? unroll(16, (i) => `var s${i} = vec4f();`, ' ')
      : 'var s = array<vec4f, 16>(); let sixteen = min(16u, 15u + groups.x);';
  }

  /** `body` for each vector: its name, and its row and column among four by four as u32 expressions. */
  each(body: (name: string, r: string, c: string) => string): string {
    return this.unrolled
      ? unroll(16, (i) => body(`s${i}`, `${Math.floor(i / 4)}u`, `${i % 4}u`))
      : `for (var i = 0u; i < sixteen; i++) { ${body('s[i]', '(i / 4u)', '(i % 4u)')} }`;
  }

  /**
   * One token: `first` times `value` is added to each vector, `second` times each is added to `total`, both by component of four vectors
   * of the arrays named, from `rows`; either may be absent.
   */
  step(first: string | undefined, value: string, second: string | undefined, rows: string): string {
    if (!this.unrolled)
      return this.each(
        (name, r, c) =>
          `${first ? `${name} += ${first}[${rows} + ${r}][${c}] * ${value};` : ''} ${second ? `total += ${second}[${rows} + ${r}][${c}] * ${name};` : ''}`,
      );
    return unroll(
      4,
      (r) => `
          ${first ? `let first${r} = ${first}[${rows} + ${r}u];` : ''}
          ${second ? `let second${r} = ${second}[${rows} + ${r}u];` : ''}
          ${unroll(4, (c) => `${first ? `s${4 * r + c} += first${r}[${c}] * ${value};` : ''} ${second ? `total += second${r}[${c}] * s${4 * r + c};` : ''}`, ' ')}`,
    );
  }
}
