import type { Device } from '../../device/device.js';
import { atomic, type Operand, read } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';

type TransposeSpec = { bits: boolean; counted: boolean };

// Rows of query blocks (ids or bits of key blocks) to rows of key blocks (bits of query blocks).
// tile    one word of a row a lane, 256 lanes
// bytes   reads each word once, one atomic `or` a selected block; the order does not matter
const transposeSelection = defineKernel({
  name: 'attention-transpose-selection',
  bindings: { list: read<TransposeSpec>('any', { raw: 'u32' }), out: atomic<TransposeSpec>('u32') },
  uniforms: { size: 'u32', words: 'u32', rowsAt: 'u32', runsAt: 'u32', queryBlocks: 'u32', keyBlocks: 'u32' },
  wgsl: ({ bits, counted }: TransposeSpec) => `
    fn mark(row: u32, block: u32) {
      if (block >= uniforms.keyBlocks) { return; }
      let query = row % uniforms.queryBlocks;
      let place = (row / uniforms.queryBlocks * uniforms.keyBlocks + block) * ((uniforms.queryBlocks + 31u) / 32u) + query / 32u;
      atomicOr(&out[base_out() + place], 1u << (query & 31u));
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let row = i / uniforms.words;
      let word = i % uniforms.words;
      ${counted ? 'if (word >= list[base_list() + uniforms.rowsAt + row]) { return; }' : ''}
      let value = list[base_list() + uniforms.runsAt + i];
      ${
        bits
          ? `var rest = value;
      while (rest != 0u) { mark(row, word * 32u + firstTrailingBit(rest)); rest &= rest - 1u; }`
          : 'mark(row, value);'
      }
    }`,
});

/** @param out zeros, u32 [.., key blocks, words] */
export function runTransposeSelection(
  device: Device,
  bits: boolean,
  list: { operand: Operand; words: number; rowsAt: number; runsAt: number; counted: boolean },
  out: Tensor,
  shape: { rows: number; queryBlocks: number; keyBlocks: number },
): void {
  const size = shape.rows * list.words;
  transposeSelection.run(device, {
    spec: { bits, counted: list.counted },
    tensors: { list: list.operand, out },
    uniforms: {
      size,
      words: list.words,
      rowsAt: list.rowsAt,
      runsAt: list.runsAt,
      queryBlocks: shape.queryBlocks,
      keyBlocks: shape.keyBlocks,
    },
    grid: [Math.ceil(size / 256)],
  });
}
