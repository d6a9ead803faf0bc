// Decodes stored rows into tensors: what dense attention over a long piece of queries reads, and tests.
// tile    1 quad a lane, 64 lanes
// bytes   reads each stored row once, writes it as f32 or f16
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel } from '../../kernel/define.js';
import type { KvCodec } from '../../seams/kv-codec.js';
import type { KvGroupView } from '../../seams/kv-stage.js';
import type { Tensor } from '../../tensor/tensor.js';
import { layoutOf } from '../group.js';
import { forCodecs, layoutUniforms, loaderText, placeFunctions } from './rows.js';

type GatherSpec = { keys: string; values: string; headDim: number; valueDim: number };

const uniforms = { ...layoutUniforms, items: 'u32', tokens: 'u32', first: 'u32' } as const;

const bindingsFor = (keyItem: string, valueItem: string) => ({
  keys: read<GatherSpec>('u32', { raw: keyItem }),
  values: read<GatherSpec>('u32', { raw: valueItem }),
  index: read<GatherSpec>('u32'),
  counts: read<GatherSpec>('i32'),
  k: write<GatherSpec>('float', { width: ({ headDim }) => (headDim % 4 === 0 ? 4 : 1) }),
  v: write<GatherSpec>('float', { width: ({ valueDim }) => (valueDim % 4 === 0 ? 4 : 1) }),
});

type GatherKernel = Kernel<GatherSpec, ReturnType<typeof bindingsFor>, typeof uniforms>;

function storeQuad(name: string, dim: number): string {
  if (dim % 4 === 0) return `store_${name}(at * ${dim / 4}u + quad, x);`;
  return [0, 1, 2, 3]
    .map((e) => `if (quad * 4u + ${e}u < ${dim}u) { store_${name}(at * ${dim}u + quad * 4u + ${e}u, x.${'xyzw'[e]}); }`)
    .join(' ');
}

function kernelFor(keys: KvCodec, values: KvCodec): GatherKernel {
  return forCodecs('gather', keys, values, () =>
    defineKernel({
      name: 'kv-gather',
      bindings: bindingsFor(keys.item, values.item),
      uniforms,
      wgsl: ({ headDim, valueDim }: GatherSpec) => {
        const keyQuads = Math.ceil(headDim / 4);
        const quads = keyQuads + Math.ceil(valueDim / 4);
        return `
        ${placeFunctions}
        ${loaderText('key', 'keys', keys, headDim)}
        ${loaderText('value', 'values', values, valueDim)}
        @compute @workgroup_size(64)
        fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
          let item = workgroupIndex(group, groups) * 64u + lane;
          if (item >= uniforms.items) { return; }
          var quad = item % ${quads}u;
          let i = item / ${quads}u % uniforms.groupHeads;
          let t = item / ${quads}u / uniforms.groupHeads % uniforms.tokens;
          let b = item / ${quads}u / uniforms.groupHeads / uniforms.tokens;
          let head = headAt(i);
          let row = uniforms.first + t;
          let stored = row < lengthOf(b, head);
          let place = placeOf(b, i, select(0u, row, stored));
          let at = (b * uniforms.tokens + t) * uniforms.kvHeads + head;
          var x = vec4f();
          if (quad < ${keyQuads}u) {
            if (stored) { x = keyQuad(place * uniforms.keyRow, quad); }
            ${storeQuad('k', headDim)}
          } else {
            quad -= ${keyQuads}u;
            if (stored) { x = valueQuad(place * uniforms.valueRow, quad); }
            ${storeQuad('v', valueDim)}
          }
        }`;
      },
    }),
  );
}

/** Rows `first` and on of a group's heads into k and v [batch, tokens, kvHeads, dim]; zeros where a head has fewer. */
export function gatherRows(device: Device, view: KvGroupView, k: Tensor, v: Tensor, first: number): void {
  const { headDim, valueDim, keyCodec, valueCodec } = view;
  const [batch = 0, tokens = 0] = k.shape;
  const items = batch * tokens * view.heads.length * (Math.ceil(headDim / 4) + Math.ceil(valueDim / 4));
  kernelFor(keyCodec, valueCodec).run(device, {
    spec: { keys: keyCodec.name, values: valueCodec.name, headDim, valueDim },
    tensors: { keys: view.keys, values: view.values, index: view.index, counts: view.counts, k, v },
    uniforms: { items, tokens, first, ...layoutOf(view) },
    grid: [Math.ceil(items / 64)],
  });
}
