// Decode attention over tensors: T x group <= 16 query rows, keys cut into parts that fill the GPU, each read once a tile of rows.
// tile    see decode-text.ts; head dimensions are multiples of 8, keys and values are loaded 16 bytes a lane
// bytes   (headDim + valueDim) x size a key and KV head, and the parts
// limits  masks in closed form (causal, window, sinks) and score functions; lists of blocks take the register tile
// source  flash-decoding (Dao et al. 2023)
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { log2e, logitText, scoreFunctions, type ScoreSpec, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { decodeLane, type DecodeTile, decodeVariables, decodeWalk, halvesOf } from './decode-text.js';

export type DecodeSpec = ScoreSpec &
  DecodeTile & {
    /** Keys and values are f16, eight a load; else f32, four a load. */
    halves: boolean;
  };

const uniforms = { ...scoreUniforms, tiles: 'u32', splits: 'u32', splitKeys: 'u32' } as const;
const rowRaw = (spec: DecodeSpec): string => (spec.halves ? 'vec4u' : 'vec4f');

const kernel = defineKernel({
  name: 'attention-decode-parts',
  tier: 'subgroups',
  forms: ['baseline', 'subgroups'],
  bindings: {
    q: read<DecodeSpec>('float', { width: 4 }),
    k: read<DecodeSpec>('float', { raw: rowRaw }),
    v: read<DecodeSpec>('float', { raw: rowRaw }),
    extras: read<DecodeSpec>('any', { raw: 'u32', when: (s) => s.extras }),
    parts: write<DecodeSpec>('f32', { width: 4 }),
  },
  uniforms,
  wgsl: decodeKernelText,
});

function decodeKernelText(spec: DecodeSpec): string {
  const { rows, headDim, valueDim, halves, lanesAKey } = spec;
  const items = halves ? 1 : 2;
  const load = (name: string, side: 'k' | 'v', dim: number) => (u: number) =>
    range(items)
      .map(
        (i) =>
          `let ${name}${u}_${i} = ${side}[base_${side}() + ${side}Base + place${u} * uniforms.${side}Row + ${items === 1 ? elementOf(dim, 'c') : `2u * ${elementOf(dim, 'c')} + ${i}u`}];`,
      )
      .join(' ');
  // lanes beyond the row repeat its last elements; their products are cut by zeros in q, their sums are not stored
  const elementOf = (dim: number, lane: string): string => (dim / 8 === lanesAKey ? lane : `min(${lane}, ${dim / 8 - 1}u)`);
  const open = (name: string) => (u: number, half: 0 | 1) => (halves ? halvesOf(`${name}${u}_0`, half) : `${name}${u}_${half}`);
  const quads = Math.ceil(valueDim / 4);
  const loadKeys = load('keys', 'k', headDim);
  const loadValues = load('values', 'v', valueDim);
  const logit = (s: string, u: number): string =>
    logitText(spec, s, { b: 'b', h: 'head', q: 'position', kv: `place${u}` }, `keyBiasOf(b, head, place${u})`);
  const walk = decodeWalk(
    {
      ...spec,
      place: (u) => `let place${u} = min(select(low + n${u} - lead, n${u}, n${u} < lead), uniforms.keys - 1u);`,
      fetch: (u) => `${loadKeys(u)} ${loadValues(u)}`,
      key: open('keys'),
      value: open('values'),
      logit,
      // rows past the last are not stored, whatever they see; leading keys lie before low
      whole: `step + ${(spec.lanes / lanesAKey) * spec.keysAStep}u <= end && step >= lead && i32(low + step - lead) >= lastToken - uniforms.left && i32(low + step - lead) + ${(spec.lanes / lanesAKey) * spec.keysAStep} <= firstToken + uniforms.right + 1`,
      seen: (u) => `n${u} < end && live && seen(b, head, position, place${u}, keyEnd)`,
      ...(spec.sinks && {
        start: {
          top: `select(NEG, bitcast<f32>(extras[base_extras() + uniforms.sinksAt + head]) * ${log2e}, sinkHere)`,
          total: 'select(0.0, 1.0, sinkHere)',
        },
      }),
    },
    (r, item, value) =>
      `{ let at = firstRow + ${r}; if (at < rowCount) { store_parts((partOf(b, kvHead, at) * uniforms.splits + split) * ${quads + 1}u + ${item}, ${value}); } }`,
  );
  return `
    ${decodeVariables(spec)}
    ${scoreFunctions(spec)}
    // row of the output: (batch, query, head)
    fn partOf(b: u32, kvHead: u32, row: u32) -> u32 {
      return (b * uniforms.queries + row / uniforms.group) * uniforms.heads + kvHead * uniforms.group + row % uniforms.group;
    }
    @compute @workgroup_size(${spec.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_invocation_id) subgroupLane: u32) {
      // the heads of a part run side by side: their rows lie behind each other
      let kvHead = group.x;
      let split = group.y % uniforms.splits;
      let firstRow = group.y / uniforms.splits * ${rows}u;
      let b = group.z;
      let rowCount = uniforms.queries * uniforms.group;
      let keyEnd = keyEndOf(b);
      let queryOffset = queryOffsetOf(b);
      let kBase = b * uniforms.kBatch + kvHead * uniforms.kHead;
      let vBase = b * uniforms.vBatch + kvHead * uniforms.vHead;
      ${decodeLane(spec)}
      let row = min(firstRow + ownRow, rowCount - 1u);
      let live = firstRow + ownRow < rowCount;
      let head = kvHead * uniforms.group + row % uniforms.group;
      let position = i32(row / uniforms.group) + queryOffset;
      ${spec.sinks ? 'let sinkHere = live && split == 0u && stream == 0u;' : ''}
      ${range(rows)
        .map(
          (r) => `
      var q${r}a = vec4f(); var q${r}b = vec4f();
      if (firstRow + ${r}u < rowCount && c < ${headDim / 8}u) {
        let at = (b * uniforms.qBatch + (firstRow + ${r}u) / uniforms.group * uniforms.qRow + (kvHead * uniforms.group + (firstRow + ${r}u) % uniforms.group) * uniforms.qHead)${halves ? ' * 2u' : ''} + 2u * c;
        q${r}a = load_q(at); q${r}b = load_q(at + 1u);
      }`,
        )
        .join('')}
      // keys that rows of the tile see: leading ones, and [low, high)
      let firstToken = i32(firstRow / uniforms.group) + queryOffset;
      let lastToken = i32((min(firstRow + ${rows}u, rowCount) - 1u) / uniforms.group) + queryOffset;
      let high = u32(clamp(lastToken + uniforms.right + 1, 0, i32(keyEnd)));
      let low = min(u32(max(firstToken - uniforms.left, 0)), high);
      let lead = min(uniforms.prefix, low);
      let count = lead + high - low;
      let begin = min(split * uniforms.splitKeys, count);
      let end = min(begin + uniforms.splitKeys, count);
      ${walk}
    }`;
}

export interface DecodeTensors {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  extras: Tensor | undefined;
  parts: Tensor;
}

/** Writes parts f32 [batch, queries, heads, splits, valueDim + 4]: the sum of values, then maximum (base 2) and total weight. */
export function runDecodeKernel(
  device: Device,
  spec: DecodeSpec,
  { extras, ...tensors }: DecodeTensors,
  values: UniformsOf<ScoreUniforms> & { tiles: number; splits: number; splitKeys: number },
  grid: readonly [number, number, number],
): void {
  const bound: Record<'q' | 'k' | 'v' | 'parts', Operand> & { extras: Operand | undefined } = { ...tensors, extras };
  kernel.run(device, { spec, tensors: bound, uniforms: values, grid });
}
