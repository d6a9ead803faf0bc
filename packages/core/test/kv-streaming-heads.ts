// The probe of the cache seams: streaming heads of RazorAttention (Tang et al. 2024) as stages. Non-retrieval heads keep sinks, a
// ring of recent rows and one compensation token, the mean of what left, that counts for all of it.
import type { KvCodec, KvHeadsStage, KvRowsStage, KvStage, KvTokensStage } from '../src/index.js';
import {
  defineKernel,
  type Kernel,
  kvExtraRowFloats,
  kvLayout,
  kvLayoutUniforms,
  kvLoader,
  kvPlaces,
  read,
  readWrite,
} from '../src/internal.js';

type LeaveSpec = { keys: string; values: string; headDim: number; valueDim: number; padded: boolean };

// Folds the rows that leave the ring into the running mean (streaming form of eq. 4): N += 1, mean += (row - mean) / N.
// tile    1 head of a sequence a workgroup, 1 quad of its key or value a lane
// bytes   reads each leaving row once
// limits  at most as many tokens come in as the ring holds
function leaveKernel(keys: KvCodec, values: KvCodec): Kernel<LeaveSpec, ReturnType<typeof bindings>, typeof uniforms> {
  return defineKernel({
    name: 'streaming-heads-leave',
    bindings: bindings(keys, values),
    uniforms,
    wgsl: ({ headDim, valueDim, padded }: LeaveSpec) => {
      const keyQuads = Math.ceil(headDim / 4);
      const valueQuads = Math.ceil(valueDim / 4);
      const row = kvExtraRowFloats(headDim, valueDim) / 4;
      return `
      ${kvPlaces}
      ${kvLoader('key', 'keys', keys, headDim)}
      ${kvLoader('value', 'values', values, valueDim)}
      @compute @workgroup_size(128)
      fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        let b = group.x / uniforms.groupHeads;
        let i = group.x % uniforms.groupHeads;
        let seen = seenOf(b);
        let tokens = ${padded ? 'u32(clamp(load_lengths(b) - i32(uniforms.offset), 0i, i32(uniforms.tokens)))' : 'uniforms.tokens'};
        let first = group.x * ${row}u;
        var state = load_extra(first);
        // the mean's quads lie behind the bias
        let mine = lane < ${keyQuads + valueQuads}u;
        var mean = vec4f();
        if (mine) { mean = load_extra(first + 1u + lane); }
        var count = state.y;
        for (var t = 0u; t < tokens; t++) {
          let position = seen + t;
          if (position < uniforms.sinks + uniforms.recent) { continue; }
          let place = placeOf(b, i, rowOf(position));
          count += 1.0;
          if (lane < ${keyQuads}u) { mean += (keyQuad(place * uniforms.keyRow, lane) - mean) / count; }
          else if (mine) { mean += (valueQuad(place * uniforms.valueRow, lane - ${keyQuads}u) - mean) / count; }
        }
        if (mine) { store_extra(first + 1u + lane, mean); }
        storageBarrier();
        if (lane == 0u && count > 0.0) { state.x = log(count); state.y = count; store_extra(first, state); }
      }`;
    },
  });
}

const uniforms = { ...kvLayoutUniforms, tokens: 'u32', offset: 'u32' } as const;

const bindings = (keys: KvCodec, values: KvCodec) => ({
  keys: read<LeaveSpec>('u32', { raw: keys.item }),
  values: read<LeaveSpec>('u32', { raw: values.item }),
  index: read<LeaveSpec>('u32'),
  counts: read<LeaveSpec>('i32'),
  extra: readWrite<LeaveSpec>('f32', { width: 4 }),
  lengths: read<LeaveSpec>('i32', { when: ({ padded }) => padded }),
});

/** Heads of `retrieval` keep every row; the others are the group "streaming". */
export function razorHeads(retrieval: readonly boolean[]): KvHeadsStage {
  const heads = (wanted: boolean): number[] => retrieval.flatMap((is, head) => (is === wanted ? [head] : []));
  return {
    kind: 'heads',
    name: 'razor heads',
    neutral: retrieval.every(Boolean),
    settings: { retrieval: retrieval.map(Number) },
    groups: () => [
      { name: 'retrieval', heads: heads(true) },
      { name: 'streaming', heads: heads(false) },
    ],
  };
}

export function razorTokens(sinks: number, recent: number): KvTokensStage {
  return {
    kind: 'tokens',
    name: 'sinks and recent rows',
    group: 'streaming',
    neutral: recent === Infinity,
    settings: { sinks, recent },
    sinks,
    recent,
  };
}

export function compensation(on = true): KvRowsStage {
  let kernel: ReturnType<typeof leaveKernel> | undefined;
  return {
    kind: 'rows',
    name: 'compensation token',
    group: 'streaming',
    neutral: !on,
    settings: {},
    extraRows: 1,
    leave(view, extra, { tokens, offset, lengths, batch }) {
      const { keyCodec, valueCodec, headDim, valueDim } = view;
      kernel ??= leaveKernel(keyCodec, valueCodec);
      kernel.run(view.device, {
        spec: { keys: keyCodec.name, values: valueCodec.name, headDim, valueDim, padded: lengths !== undefined },
        tensors: { keys: view.keys, values: view.values, index: view.index, counts: view.counts, extra, lengths },
        uniforms: { ...kvLayout(view), tokens, offset },
        grid: [batch * view.heads.length],
      });
    },
  };
}

/** Stored rows as codes, in every head. */
export function codes(codec: KvCodec): KvStage {
  return { kind: 'codes', name: codec.name, neutral: false, settings: { codec: codec.name }, keys: codec, values: codec };
}
