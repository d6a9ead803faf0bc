// Visibility of the partial tiles of a mask as bits, made once for a mask, lengths and tiles: kernels then read a word for 32 pairs
// where they would ask the predicate 32 times.
// tile    a partial tile a workgroup, a word of 32 pairs of a row a lane
// bytes   8 a tile of the list, 1 bit a pair; what the predicate reads
// limits  masks whose captured arrays lie on the host; the caller bounds the number of tiles
// source  FlexAttention (Dong et al. 2024) lists such tiles; the bits are ours
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { MaskArena } from '../arena.js';
import type { TileSizes } from '../mask/index.js';
import { scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';

type BitsSpec = {
  /** WGSL of `maskOf`. */
  mask: string;
  rows: number;
  columns: number;
  /** Rows are keys, columns queries. */
  transposed: boolean;
};

const kernel = defineKernel({
  name: 'attention-mask-bits',
  bindings: {
    arena: read<BitsSpec>('any', { raw: 'u32' }),
    list: read<BitsSpec>('u32'),
    bits: write<BitsSpec>('u32'),
  },
  uniforms: { ...scoreUniforms, tiles: 'u32' },
  wgsl: ({ mask, rows, columns, transposed }: BitsSpec) => {
    const words = Math.ceil(columns / 32);
    const [limits, pair] = transposed
      ? [
          { rows: 'keys', columns: 'queries' },
          { query: 'other', key: 'row' },
        ]
      : [
          { rows: 'queries', columns: 'keys' },
          { query: 'row', key: 'other' },
        ];
    return `
    ${mask}
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let tile = workgroupIndex(group, groups);
      if (tile >= uniforms.tiles) { return; }
      let listRow = load_list(2u * tile);
      let columnStart = load_list(2u * tile + 1u) * ${columns}u;
      let rowStart = listRow % uniforms.listRows * ${rows}u;
      let h = i32(listRow / uniforms.listRows % uniforms.listHeads);
      let b = i32(listRow / uniforms.listRows / uniforms.listHeads);
      for (var at = lane; at < ${rows * words}u; at += 64u) {
        let row = rowStart + at / ${words}u;
        let first = columnStart + at % ${words}u * 32u;
        let end = min(uniforms.${limits.columns}, columnStart + ${columns}u);
        var word = 0u;
        for (var j = 0u; j < ${Math.min(32, columns)}u * uniforms.one; j++) {
          let other = first + j;
          if (row < uniforms.${limits.rows} && other < end && maskOf(b, h, i32(${pair.query}) + uniforms.queryOffset, i32(${pair.key}))) { word |= 1u << j; }
        }
        store_bits(tile * ${rows * words}u + at, word);
      }
    }`;
  },
});

/** Makes the bits that an arena has room for; the lists and arrays before them are written. */
export function makeMaskBits(
  device: Device,
  arena: MaskArena,
  { tiles, transposed }: { tiles: TileSizes; transposed: boolean },
  { spec, uniforms }: { spec: { mask: string }; uniforms: UniformsOf<ScoreUniforms> },
): void {
  const { bits, operand } = arena;
  const list = bits?.pending;
  if (!bits || !list) return;
  bits.pending = undefined;
  const [rows, columns] = transposed ? [tiles.key, tiles.query] : [tiles.query, tiles.key];
  const extent = bits.tiles * rows * bits.words;
  const listed = device.allocate(list.byteLength, 'partial tiles');
  const made = device.allocate(4 * extent, 'mask bits');
  device.write(listed, 0, new Uint8Array(list.buffer, list.byteOffset, list.byteLength));
  kernel.run(device, {
    spec: { mask: spec.mask, rows, columns, transposed },
    tensors: {
      arena: operand,
      list: { storage: listed, dtype: 'u32', offset: 0, extent: list.length, label: 'partial tiles' },
      bits: { storage: made, dtype: 'u32', offset: 0, extent, label: 'mask bits' },
    },
    uniforms: { tiles: bits.tiles, ...uniforms },
    grid: [bits.tiles],
  });
  device.recorder.copy(made, 0, operand.storage, 4 * bits.bitsAt, 4 * extent);
  device.pool.release(listed);
  device.pool.release(made);
}
