import type { Capabilities } from '../../device/capabilities.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { range, unroll } from '../../kernel/modules.js';
import { tileDepth } from './plan.js';
import { bankGap, type TileSide, tileLoader, tileName, tileQuads } from './tile-loads.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall, tileText } from './text.js';

// out = activation(a b + bias) + addTo in f32, tiles in workgroup memory, sums in named registers.
// tile    rows x columns x 16, one lane laneRows x laneColumns of it; the next tile is prefetched into registers
// bytes   reads (M K N / columns + K N M / rows), writes M N elements; workgroup memory 64 x (rows + columns) and 192, 16.2 KiB at most
// limits  any M, N, K, strides and offsets (loads of four where aligned); matrices x tiles x splits < 2^32
// source  the usual register blocking; tiles lie row by row of k, k-contiguous operands are turned around on the way (tile-loads.ts)
export interface TileSpec extends OutSpec {
  rows: number;
  columns: number;
  laneRows: number;
  laneColumns: number;
  transposeA: boolean;
  transposeB: boolean;
  vecA: boolean;
  vecB: boolean;
}

const kernel = defineKernel({
  name: 'matmul-tile',
  bindings: {
    a: read<TileSpec>('float', { width: (spec) => (spec.vecA ? 4 : 1) }),
    b: read<TileSpec>('float', { width: (spec) => (spec.vecB ? 4 : 1) }),
    out: write<TileSpec>('float', { width: (spec) => spec.outWidth }),
    bias: read<TileSpec>('float', { when: (spec) => spec.bias }),
    addTo: read<TileSpec>('float', { width: (spec) => spec.outWidth, when: (spec) => spec.addTo }),
  },
  uniforms: matmulUniforms,
  wgsl: tileKernelText,
});

/** Records the tile kernel. */
export function runTile(device: Device, spec: TileSpec, call: ProductCall): void {
  kernel.run(device, { spec, ...call });
}

/** Lanes of 32 that run together take 4 x 8 of the tile, so that they read few different fours of either operand. */
const together = { down: 4, across: 8 };

function tileKernelText(spec: TileSpec, { capabilities }: KernelContext): string {
  const lanesDown = spec.rows / spec.laneRows;
  const lanesAcross = spec.columns / spec.laneColumns;
  const lanes = lanesDown * lanesAcross;
  const gaps = bankGaps(spec, capabilities);
  const a: TileSide = {
    name: 'a',
    free: spec.rows,
    gap: gaps.a,
    alongDepth: !spec.transposeA,
    vec: spec.vecA,
    first: 'tile.row',
    extent: 'uniforms.M',
  };
  const b: TileSide = {
    name: 'b',
    free: spec.columns,
    gap: gaps.b,
    alongDepth: spec.transposeB,
    vec: spec.vecB,
    first: 'tile.column',
    extent: 'uniforms.N',
  };
  const loadA = tileLoader(a, lanes);
  const loadB = tileLoader(b, lanes);
  const rowQuads = spec.laneRows / 4;
  const columnQuads = spec.laneColumns / 4;
  const sums = range(rowQuads).flatMap((g) =>
    range(4).flatMap((j) => range(columnQuads).map((h) => ({ g, j, h, name: `c${g}_${j}_${h}` }))),
  );
  // GPUs (wide subgroups) gain by eight steps along k with constant offsets, and lose by all 16; software drivers take seconds
  const steps = capabilities.subgroupMinSize >= 16 ? 8 : 4;
  const products = (i: number): string => `{
          ${unroll(rowQuads, (g) => `let a_${g} = ${readTile(a, i, steps, `${g * lanesDown}u + down`)};`, ' ')}
          ${unroll(columnQuads, (h) => `let b_${h} = ${readTile(b, i, steps, `${h * lanesAcross}u + across`)};`, ' ')}
          ${sums.map(({ g, j, h, name }) => `${name} = fma(vec4f(a_${g}[${j}]), b_${h}, ${name});`).join('\n')}
        }`;
  // whole tiles along k, which all but the last one are, are fetched without a look at the end of k
  const fetch = `
      if (kt + ${tileDepth}u <= place.kEnd) { ${loadA.fetch(false)} ${loadB.fetch(false)} }
      else if (kt < place.kEnd) { ${loadA.fetch(true)} ${loadB.fetch(true)} }`;
  const wide = lanesAcross / together.across;
  return `
    ${placeText(spec.partial)}
    ${tileText(spec.rows, spec.columns)}
    ${epilogueText(spec)}
    var<workgroup> tileA: array<vec4f, ${tileQuads(a)}>;
    var<workgroup> tileB: array<vec4f, ${tileQuads(b)}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.total) { return; }
      let tile = tileOf(index);
      let place = placeOf(tile.rest);
      let down = lane / ${32 * wide}u * ${together.down}u + lane % 32u / ${together.across}u;
      let across = lane / 32u % ${wide}u * ${together.across}u + lane % ${together.across}u;
      ${sums.map(({ name }) => `var ${name} = vec4f();`).join('\n')}
      var kt = place.kBegin;
      ${loadA.places}
      ${loadB.places}
      ${fetch}
      while (kt < place.kEnd) {
        ${loadA.stage}
        ${loadB.stage}
        workgroupBarrier();
        kt += ${tileDepth}u;
        ${loadA.step} ${loadB.step}
        ${fetch}
        for (var q = 0u; q < ${loopBound(tileDepth / steps, capabilities)}; q++) {
          ${unroll(steps, products)}
        }
        workgroupBarrier();
      }
      ${sums
        .map(({ g, j, h, name }) => {
          const row = `tile.row + (${g * lanesDown}u + down) * 4u + ${j}u`;
          const column = `tile.column + (${h * lanesAcross}u + across) * 4u`;
          return `if (${row} < uniforms.M) { finishFour(place.out + (${row}) * uniforms.rowOut + ${column}, ${column}, ${name}); }`;
        })
        .join('\n')}
    }`;
}

/** Four rows or columns at k `steps` q + i, from `own` on. */
function readTile(side: TileSide, i: number, steps: number, own: string): string {
  const at = (k: number): number => (k * side.free) / 4 + (k >> 2) * side.gap;
  return `${tileName(side)}[q * ${at(steps)}u + ${at(i)}u + ${own}]`;
}

/** Gaps of both operands' tiles; none where workgroup memory ends with the tiles (16 KiB). */
function bankGaps({ rows, columns, transposeA, transposeB }: TileSpec, { limits }: Capabilities): { a: number; b: number } {
  const gaps = { a: transposeA ? 0 : bankGap, b: transposeB ? bankGap : 0 };
  const bytes = 16 * (tileQuads({ free: rows, gap: gaps.a }) + tileQuads({ free: columns, gap: gaps.b }));
  return bytes <= limits.maxComputeWorkgroupStorageSize ? gaps : { a: 0, b: 0 };
}
