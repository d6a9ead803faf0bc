// From what segments add to the state before each: S_0 = initial, S_(s+1) = S_s + U_s, in f32; each is written as f16 times the power of two that
// keeps it in range, from a bound: |S| grows by at most n max|phi(k)| max|v, 1| a segment of n tokens.
// tile    two columns of one feature a lane, all segments in turn, eight of them loaded ahead
// bytes   reads f32 and writes f16 features x width a segment
// limits  none; `final` and `initial` are in the compressed order and the scaling of the technique
import { range } from '@heed/core/~internal';
import { type FeatureMap, paddedFeatures } from './map.js';
import { lengthText, rangeText } from './text.js';

/** What specialises the kernel. */
export interface SegmentsSpec {
  [name: string]: string | number | boolean;
  /** Coordinates. */
  dim: number;
  columns: number;
  width: number;
  valueDim: number;
  initial: boolean;
  final: boolean;
  /** Every query sees every key: only the state behind the last segment is written. */
  whole: boolean;
  lengths: boolean;
}

const ahead = 8;

export function segmentsText(map: FeatureMap, s: SegmentsSpec): string {
  const size = paddedFeatures(map) * s.width;
  const perPlace = Math.ceil(size / 512);
  const keep = (at: string, peak: string): string => `
        before[base_before() + (${at} * ${size}u + element) / 2u] = bitcast<u32>(vec2<f16>(state * down));
        if (element == 0u) { store_downs(2u * ${at}, down); store_downs(2u * ${at} + 1u, ${peak}); }`;
  const edge = (name: 'initial' | 'final', factor: string): string => `if (row < ${map.count}u) {
        let pair = batch * uniforms.heads + head;
        ${
          name === 'initial'
            ? `
        for (var e = 0u; e < 2u; e++) {
          let c = column + e;
          if (c < ${s.columns}u && columns + c < ${s.valueDim}u) { state[e] = load_initialKv((pair * ${map.count}u + row) * ${s.valueDim}u + columns + c) / ${factor}; }
          if (c == ${s.columns}u) { state[e] = load_initialZ(pair * ${map.count}u + row) / ${factor}; }
        }`
            : `
        for (var e = 0u; e < 2u; e++) {
          let c = column + e;
          if (c < ${s.columns}u && columns + c < ${s.valueDim}u) { store_finalKv((pair * ${map.count}u + row) * ${s.valueDim}u + columns + c, state[e] * ${factor}); }
          if (c == ${s.columns}u && columns == 0u) { store_finalZ(pair * ${map.count}u + row, state[e] * ${factor}); }
        }`
        }
      }`;
  const bound = (e: string): string => `
          let n${e} = f32(min((segment + ${e}u + 1u) * uniforms.segmentTokens, length) - min((segment + ${e}u) * uniforms.segmentTokens, length));`;
  return `
    ${rangeText}
    ${lengthText(s.lengths)}
    ${map.functions}
    ${s.initial ? 'var<workgroup> peaks: array<atomic<u32>, 4>;' : ''}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let tile = index / ${perPlace}u % uniforms.columnTiles;
      let head = index / (${perPlace}u * uniforms.columnTiles) % uniforms.heads;
      let batch = index / (${perPlace}u * uniforms.columnTiles * uniforms.heads);
      let columns = tile * ${s.columns}u;
      let element = (index % ${perPlace}u * 256u + lane) * 2u;
      let row = element / ${s.width}u;
      let column = element % ${s.width}u;
      let length = lengthOf(batch);
      var state = vec2f();
      var bound = 0.0;
      ${
        s.initial
          ? `
      var top = 0.0;
      let pairAt = batch * uniforms.heads + head;
      for (var e = lane; e < ${map.count * s.valueDim}u; e += 256u) { top = max(top, abs(load_initialKv(pairAt * ${map.count * s.valueDim}u + e)) / ${map.stateFactor(`(e / ${s.valueDim}u)`)}); }
      for (var e = lane; e < ${map.count}u; e += 256u) { top = max(top, abs(load_initialZ(pairAt * ${map.count}u + e)) / ${map.stateFactor('e')}); }
      atomicMax(&peaks[0], bitcast<u32>(top));
      workgroupBarrier();
      bound = bitcast<f32>(atomicLoad(&peaks[0]));`
          : ''
      }
      if (element >= ${size}u) { return; }
      ${s.initial ? edge('initial', map.stateFactor('row')) : ''}
      let first = (batch * uniforms.heads + head) * uniforms.segments;
      for (var segment = 0u; segment < uniforms.segments; segment += ${ahead}u) {
        ${range(ahead)
          .map(
            (e) => `
        let at${e} = (first + min(segment + ${e}u, uniforms.segments - 1u)) * uniforms.columnTiles + tile;
        let added${e} = added[base_added() + (at${e} * ${size}u + element) / 2u];
        let peak${e} = load_peaksOf(2u * at${e});
        let values${e} = load_peaksOf(2u * at${e} + 1u);`,
          )
          .join('')}
        ${range(ahead)
          .map(
            (e) => `
        if (segment + ${e}u < uniforms.segments) {
          ${s.whole ? '' : `{ let down = min(fitTo(bound, 15), ${map.mostDown(`peak${e}`)}); ${keep(`at${e}`, `peak${e}`)} }`}
          ${bound(String(e))}
          state += added${e} * ${map.unscaled('row', `peak${e}`)};
          bound += n${e} * ${map.keyBound(`peak${e}`)} * max(1.0, values${e});
        }`,
          )
          .join('')}
      }
      ${s.whole ? `{ let down = min(fitTo(bound, 15), 256.0); let at = (batch * uniforms.heads + head) * uniforms.columnTiles + tile; ${keep('at', '0.0')} }` : ''}
      ${s.final ? edge('final', map.stateFactor('row')) : ''}
    }`;
}
