// Encodes new rows of keys and values into their pages.
// tile    1 unit (a quad, or a group with its own scale) a lane, 64 lanes
// bytes   reads each element once, writes each stored row once
// limits  the caller made sure that the rows fit; padding tokens (t >= lengths[b]) are not stored
// source  page layout of vLLM (Kwon et al. 2023, section 4), a page for all heads of a group
import { type Kernel, defineKernel } from '../../kernel/define.js';
import { read, readWrite } from '../../kernel/bindings.js';
import type { Device } from '../../device/device.js';
import type { KvGroupView } from '../../seams/kv-stage.js';
import type { KvCodec } from '../../seams/kv-codec.js';
import type { Tensor } from '../../tensor/tensor.js';
import { layoutOf } from '../group.js';
import { forCodecs, layoutUniforms, placeFunctions } from './rows.js';

type AppendSpec = { keys: string; values: string; headDim: number; valueDim: number; ragged: boolean };

const uniforms = {
  ...layoutUniforms,
  items: 'u32',
  tokens: 'u32',
  /** Tokens of the call that earlier pieces stored. */
  offset: 'u32',
  /** 1, unknown to compilers. */
  one: 'u32',
  kBatch: 'u32',
  kToken: 'u32',
  kHead: 'u32',
  vBatch: 'u32',
  vToken: 'u32',
  vHead: 'u32',
} as const;

const bindings = {
  k: read<AppendSpec>('float'),
  v: read<AppendSpec>('float'),
  keys: readWrite<AppendSpec>('u32', { raw: 'u32' }),
  values: readWrite<AppendSpec>('u32', { raw: 'u32' }),
  index: read<AppendSpec>('u32'),
  counts: read<AppendSpec>('i32'),
  lengths: read<AppendSpec>('i32', { when: ({ ragged }) => ragged }),
};

/** Encoder of one side: the element loader, the store into words, the codec's text. */
function encoder(side: 'k' | 'v', pool: 'keys' | 'values', codec: KvCodec, dim: number): string {
  const words = codec.item === 'u32' ? 1 : codec.item === 'vec2u' ? 2 : 4;
  const puts =
    words === 1
      ? `${pool}[at] = item;`
      : ['x', 'y', 'z', 'w']
          .slice(0, words)
          .map((c, i) => `${pool}[at + ${i}u] = item.${c};`)
          .join(' ');
  return `
    fn value_${side}(i: u32) -> f32 { if (i >= ${dim}u) { return 0.0; } return load_${side}(source + i); }
    fn put_${side}(i: u32, item: ${codec.item}) { let at = base_${pool}() + i * ${words}u; ${puts} }
    fn encode_${side}(row: u32, unit: u32) { ${codec.encode(dim, `value_${side}`, `put_${side}`)} }`;
}

type AppendKernel = Kernel<AppendSpec, typeof bindings, typeof uniforms>;

function kernelFor(keys: KvCodec, values: KvCodec): AppendKernel {
  return forCodecs('append', keys, values, () =>
    defineKernel({
      name: 'kv-append',
      bindings,
      uniforms,
      wgsl: ({ headDim, valueDim, ragged }: AppendSpec) => {
        const keyUnits = Math.ceil(headDim / keys.unit);
        const units = keyUnits + Math.ceil(valueDim / values.unit);
        return `
        var<private> source: u32;
        ${placeFunctions}
        fn hidden(n: u32) -> u32 { return n * uniforms.one; }
        ${encoder('k', 'keys', keys, headDim)}
        ${encoder('v', 'values', values, valueDim)}
        @compute @workgroup_size(64)
        fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
          let item = workgroupIndex(group, groups) * 64u + lane;
          if (item >= uniforms.items) { return; }
          let unit = item % ${units}u;
          let i = item / ${units}u % uniforms.groupHeads;
          let t = item / ${units}u / uniforms.groupHeads % uniforms.tokens;
          let b = item / ${units}u / uniforms.groupHeads / uniforms.tokens;
          ${ragged ? 'if (i32(uniforms.offset + t) >= load_lengths(b)) { return; }' : ''}
          let place = placeOf(b, i, rowOf(seenOf(b) + t));
          let head = headAt(i);
          if (unit < ${keyUnits}u) {
            source = b * uniforms.kBatch + (uniforms.offset + t) * uniforms.kToken + head * uniforms.kHead;
            encode_k(place * uniforms.keyRow, unit);
          } else {
            source = b * uniforms.vBatch + (uniforms.offset + t) * uniforms.vToken + head * uniforms.vHead;
            encode_v(place * uniforms.valueRow, unit - ${keyUnits}u);
          }
        }`;
      },
    }),
  );
}

/** Tokens `offset` .. `offset` + `tokens` - 1 of a call; of all of them, the first `lengths` of an entry are valid. */
export interface AppendPiece {
  offset: number;
  tokens: number;
  lengths: Tensor | undefined;
}

/** Stores a piece of k and v [batch, n, kvHeads, dim] behind the tokens that the counts tell. */
export function appendRows(device: Device, view: KvGroupView, k: Tensor, v: Tensor, { offset, tokens, lengths }: AppendPiece): void {
  const { keyCodec, valueCodec, headDim, valueDim } = view;
  const units = Math.ceil(headDim / keyCodec.unit) + Math.ceil(valueDim / valueCodec.unit);
  const [batch = 0] = k.shape;
  const items = batch * tokens * view.heads.length * units;
  kernelFor(keyCodec, valueCodec).run(device, {
    spec: { keys: keyCodec.name, values: valueCodec.name, headDim, valueDim, ragged: lengths !== undefined },
    tensors: { k, v, keys: view.keys, values: view.values, index: view.index, counts: view.counts, lengths },
    uniforms: {
      items,
      tokens,
      offset,
      one: 1,
      kBatch: k.strides[0] ?? 0,
      kToken: k.strides[1] ?? 0,
      kHead: k.strides[2] ?? 0,
      vBatch: v.strides[0] ?? 0,
      vToken: v.strides[1] ?? 0,
      vHead: v.strides[2] ?? 0,
      ...layoutOf(view),
    },
    grid: [Math.ceil(items / 64)],
  });
}
