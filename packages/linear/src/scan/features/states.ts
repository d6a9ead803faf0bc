// What each segment of tokens adds to the state, as products of fragments: U = phi(K)^T [V, 1], features made as keys are loaded.
// tile    all features x `columns` values and the ones a workgroup; `blocks` of 16 features a subgroup, 32 tokens a step
// bytes   reads k twice (its peak first) and v once a column tile; writes f32 features x width a segment
// limits  f16 operands, f32 sums; keys are scaled by a power of two a segment that keeps features in range
// source  Arora et al. 2024 (arXiv 2402.18668), section 4; Katharopoulos et al. 2020, eq. 9
import { fragmentLanes, Fragments, type KernelContext, range } from '@heed/core/~internal';
import { FragmentLoops, times, u32 } from '../fragment-loops.js';
import type { HalfLoad } from '../views.js';
import { type FeatureMap, paddedFeatures } from './map.js';
import { eightText, joinText, lengthText, rangeText, rowOf } from './text.js';
import { type FeatureTile, oddEights } from './tile.js';

/** What specialises the kernel. */
export interface StatesSpec extends FeatureTile {
  [name: string]: string | number | boolean;
  /** Coordinates. */
  dim: number;
  valueDim: number;
  loadK: HalfLoad;
  loadV: HalfLoad;
  lengths: boolean;
}

export function statesText(map: FeatureMap, s: StatesSpec, { capabilities }: KernelContext): string {
  const f = new Fragments(capabilities, { N: s.fragmentColumns as 8 | 16, packed: ['features', 'values'] });
  const loops = new FragmentLoops(f, s.width / f.N);
  const padded = paddedFeatures(map);
  const { blocks } = s;
  const subgroups = Math.ceil(padded / 16 / blocks);
  const lanes = subgroups * fragmentLanes;
  const all = range(Math.ceil(map.dim / 8));
  const chunk = (m: number): string => `(subgroup * ${blocks}u + ${m}u)`;
  // a map may need two eights a block of features; otherwise a lane holds its whole row
  const { keyUnit } = map;
  const units = keyUnit ? range(2 * blocks) : all;
  const unit = (u: number): string => (keyUnit ? `8u * (${keyUnit(chunk(u >> 1))} + ${u & 1}u)` : `${8 * u}u`);
  const stride = (2 * blocks) | 1;
  const [valueStride, across] = [oddEights(s.width), s.width / 8];
  const items = range(Math.ceil((32 * across) / lanes));
  const eachItem = (body: (i: number) => string): string =>
    items
      .map(
        (i) =>
          `if (lane + ${i * lanes}u < ${32 * across}u) { let r = (lane + ${i * lanes}u) / ${across}u; let u = (lane + ${i * lanes}u) % ${across}u; ${body(i)} }`,
      )
      .join('\n');
  const loadRow = (token: string): string =>
    `{ let base = ${rowOf('k', token)}; ${units.map((u) => `row${u} = eight_k(base, ${unit(u)});`).join(' ')} }`;
  const fetch = `
        ${units.map((u) => `row${u} = vec4u();`).join(' ')}
        if (at + subgroupLane < end) ${loadRow('at + subgroupLane')}
        ${eachItem(
          (i) => `
          heldValue${i} = vec4u();
          if (at + r < end) {
            if (u < ${s.columns / 8}u) { heldValue${i} = eight_v(${rowOf('v', 'at + r')}, columns + 8u * u); }
            else { heldValue${i} = vec4u(select(0u, 0x3c00u, u == ${s.columns / 8}u), 0u, 0u, 0u); }
          }`,
        )}`;
  const make = (m: number): string => `
          ${map.features('k', chunk(m), keyUnit && [`row${2 * m}`, `row${2 * m + 1}`])}
          features[lane * ${stride}u + ${2 * m}u] = low;
          features[lane * ${stride}u + ${2 * m + 1}u] = high;`;
  return `
    ${rangeText}
    ${eightText('k', s.loadK, map.dim)}
    ${eightText('v', s.loadV, s.valueDim)}
    ${lengthText(s.lengths)}
    ${map.functions}
    var<workgroup> features: array<vec4u, ${lanes * stride}>;
    var<workgroup> values: array<vec4u, ${32 * valueStride}>;
    var<workgroup> peaks: array<atomic<u32>, 4>;
    ${f.entry(
      subgroups,
      `
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let columns = index % uniforms.columnTiles * ${s.columns}u;
      let head = index / uniforms.columnTiles % uniforms.heads;
      let segment = index / (uniforms.columnTiles * uniforms.heads) % uniforms.segments;
      let batch = index / (uniforms.columnTiles * uniforms.heads * uniforms.segments);
      let place = ((batch * uniforms.heads + head) * uniforms.segments + segment) * uniforms.columnTiles + index % uniforms.columnTiles;
      let first = min(segment * uniforms.segmentTokens, lengthOf(batch));
      let end = min(first + uniforms.segmentTokens, lengthOf(batch));
      ${units.map((u) => `var row${u} = vec4u();`).join(' ')}
      var peakK = 0.0;
      for (var t = first + lane; t < end; t += ${lanes}u) {
        let base = ${rowOf('k', 't')};
        ${all.map((u) => `peakK = max(peakK, peakOf(eight_k(base, ${8 * u}u)));`).join(' ')}
      }
      ${joinText(f.hardware, 'peaks[0]', 'peakK')}
      workgroupBarrier();
      let peak = bitcast<f32>(atomicLoad(&peaks[0]));
      ${items.map((i) => `var heldValue${i} = vec4u();`).join(' ')}
      ${loops.declare('s', blocks)}
      var peakV = 0.0;
      var at = first;
      ${fetch}
      while (at < end) {
        {
          ${map.keyRow()}
          var low = vec4u();
          var high = vec4u();
          ${range(blocks).map(make).join('\n')}
        }
        ${eachItem((i) => `values[r * ${valueStride}u + u] = heldValue${i}; peakV = max(peakV, peakOf(heldValue${i}));`)}
        workgroupBarrier();
        at += 32u;
        ${fetch}
        ${loops.each(
          0,
          2,
          (t) => `
          ${loops.columnsOf((c) => f.loadRight(`value${c}`, 'values', `${u32(times(t, 16 * valueStride))} + ${(c * f.N) / 8}u`, `${valueStride}u`))}
          ${loops.each(
            0,
            blocks,
            (m) => `
            ${f.loadLeft('part', 'features', `(subgroup * 32u + ${u32(times(t, 16))}) * ${stride}u + ${u32(times(m, 2))}`, `${stride}u`, 'column')}
            ${loops.columnsOf((c) => f.multiplyAdd(loops.at('s', m, c), 'part', `value${c}`))}`,
          )}`,
        )}
        workgroupBarrier();
      }
      ${joinText(f.hardware, 'peaks[1]', 'peakV')}
      workgroupBarrier();
      if (lane == 0u) { store_peaksOf(2u * place, peak); store_peaksOf(2u * place + 1u, bitcast<f32>(atomicLoad(&peaks[1]))); }
      let base = base_added() + (place * ${padded}u + subgroup * ${16 * blocks}u) * ${s.width}u;
      ${loops.each(0, blocks, (m) =>
        loops.columnsOf((c) => f.store(loops.at('s', m, c), 'added', `base + ${u32(times(m, 16 * s.width))} + ${c * f.N}u`, `${s.width}u`)),
      )}`,
      { lanesInOrder: true },
    )}`;
}
