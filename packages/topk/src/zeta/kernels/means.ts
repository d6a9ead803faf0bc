import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, write, type WgslModule } from '@heed/core/~internal';
import { cauchyModule } from './cauchy.js';
import { sumTile } from './sums.js';
import { columnsOf, valueModule, valueRows, type ValueSpec, valueStrides } from './values.js';

type MeanSpec = ValueSpec & { half: boolean };

/** Element of the rows of means: the weight in one, four columns of the mean value, in the format of the values, in each of the others. */
export const meanWord = ({ half }: { half: boolean }): string => (half ? 'vec2u' : 'vec4u');

/** `packMean(value)` and `unpackMean(word)`. */
export const meanModule = (half: boolean): WgslModule => ({
  name: `zeta-mean-${half}`,
  text: half
    ? `fn packMean(x: vec4f) -> vec2u { return vec2u(pack2x16float(x.xy), pack2x16float(x.zw)); }
       fn unpackMean(x: vec2u) -> vec4f { return vec4f(unpack2x16float(x.x), unpack2x16float(x.y)); }`
    : `fn packMean(x: vec4f) -> vec4u { return bitcast<vec4u>(x); }
       fn unpackMean(x: vec4u) -> vec4f { return bitcast<vec4f>(x); }`,
});

// The history mean of each query: its Cauchy weight 1 / (|q - mean key|^2 + gamma^2) and the mean value.
// tile    a tile of 16 tokens, the key or four value columns a lane, 256 lanes
// bytes   reads 32 + size valueDim, writes 2 size (2 + valueDim) or so a query
const historyMeans = defineKernel({
  name: 'zeta-means',
  bindings: {
    q: read<MeanSpec>('f32', { width: 4 }),
    k: read<MeanSpec>('f32', { width: 4 }),
    v: read<MeanSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    theta: read<MeanSpec>('f32'),
    sums: read<MeanSpec>('f32', { width: 4 }),
    means: write<MeanSpec>('u32', { raw: meanWord }),
  },
  uniforms: {
    rows: 'u32',
    firstRow: 'u32',
    heads: 'u32',
    capacity: 'u32',
    queries: 'u32',
    firstQuery: 'u32',
    entries: 'u32',
    tokens: 'u32',
    causal: 'u32',
    ...valueStrides,
  },
  modules: (spec: MeanSpec) => [cauchyModule, valueModule('v', spec), meanModule(spec.half)],
  wgsl: ({ valueDim, half }: MeanSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let columns = ${columnsOf(valueDim) + 1}u;
      let firstTile = uniforms.firstQuery / ${sumTile}u;
      let end = uniforms.firstQuery + uniforms.queries;
      let tiles = (end + ${sumTile - 1}u) / ${sumTile}u - firstTile;
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * tiles * columns) { return; }
      let column = i % columns;
      let tile = firstTile + (i / columns) % tiles;
      let r = i / columns / tiles;
      let row = uniforms.firstRow + r;
      let at = (row / uniforms.heads) * uniforms.batchStride + (row % uniforms.heads) * uniforms.headStride;
      let gamma2 = gammaSquared(load_theta(row % uniforms.heads));
      let all = uniforms.causal == 0u;
      var sum = load_sums((r * uniforms.entries + select(tile, uniforms.entries - 1u, all)) * columns + column);
      for (var t = tile * ${sumTile}u; t < min(tile * ${sumTile}u + ${sumTile}u, end); t++) {
        if (!all) {
          if (column == 0u) { sum += load_k(r * uniforms.capacity + t); } else { sum += value_v(at + t * uniforms.tokenStride, column - 1u); }
        }
        if (t < uniforms.firstQuery) { continue; }
        let mean = sum / f32(select(t + 1u, uniforms.tokens, all));
        let query = r * uniforms.queries + t - uniforms.firstQuery;
        var word = packMean(mean);
        if (column == 0u) {
          word = ${half ? 'vec2u' : 'vec4u'}(bitcast<u32>(1.0 / (squaredDistance(load_q(query), mean) + gamma2)));
        }
        means[base_means() + query * columns + column] = word;
      }
    }`,
});

/** Where queries and keys lie. */
export interface MeanPlace {
  rows: number;
  firstRow: number;
  heads: number;
  /** Places a row of k. */
  capacity: number;
  queries: number;
  firstQuery: number;
  /** Entries a row of sums. */
  entries: number;
  tokens: number;
  causal: boolean;
}

/** Whether means are kept in 16 bits. */
export const isHalf = (v: Tensor): boolean => v.dtype === 'f16';

/** The means of queries q f32 [rows, queries, 4], u32 [rows, queries, 1 + columns, words]. */
export function meansOf(tensors: { q: Tensor; k: Tensor; v: Tensor; theta: Tensor; sums: Tensor }, place: MeanPlace): Tensor {
  const { q, k, theta, sums } = tensors;
  const { tensor: v, spec, strides } = valueRows(tensors.v);
  const half = isHalf(v);
  const { rows, queries, firstQuery } = place;
  const columns = columnsOf(spec.valueDim) + 1;
  const means = empty(q.device, [rows, queries, columns, half ? 2 : 4], 'u32');
  const tiles = Math.ceil((firstQuery + queries) / sumTile) - Math.floor(firstQuery / sumTile);
  historyMeans.run(q.device, {
    spec: { half, ...spec },
    tensors: { q, k, v, theta, sums, means },
    uniforms: { ...place, causal: place.causal ? 1 : 0, ...strides },
    grid: [Math.ceil((rows * tiles * columns) / 256)],
  });
  return means;
}
