// Decode attention of one query whose heads all see the same keys, scores as they are: what a generating model asks for.
// tile    see decode-text.ts; keys are loaded a step ahead of their use, 16 bytes a lane
// bytes   (headDim + valueDim) x size a key and KV head, and the parts
// limits  head dimensions are multiples of 8; few run-time values, the first 64 bytes of them ahead of any load: each line waited for costs 1 us
// source  flash-decoding (Dao et al. 2023)
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { decodeLane, type DecodeTile, decodeVariables, decodeWalk, halvesOf } from './decode-text.js';

export type EvenDecodeSpec = DecodeTile & {
  headDim: number;
  valueDim: number;
  /** Keys and values are f16, eight a load; else f32, four a load. */
  halves: boolean;
  /** The rows of a tile are the heads of a group: no tile is partly filled. */
  full: boolean;
};

const rowRaw = (spec: EvenDecodeSpec): string => (spec.halves ? 'vec4u' : 'vec4f');

// strides in items of the bindings; in the order in which a workgroup needs them
const uniforms = {
  splitKeys: 'u32',
  // keys seen, from the first of the binding on
  count: 'u32',
  kBatch: 'u32',
  kHead: 'u32',
  kRow: 'u32',
  qBatch: 'u32',
  qHead: 'u32',
  vBatch: 'u32',
  vHead: 'u32',
  vRow: 'u32',
  // scale times log2 e
  scale2: 'f32',
  group: 'u32',
  tiles: 'u32',
  heads: 'u32',
  splits: 'u32',
} as const;

const kernel = defineKernel({
  name: 'attention-decode-even',
  tier: 'subgroups',
  forms: ['baseline', 'subgroups'],
  bindings: {
    q: read<EvenDecodeSpec>('float', { width: 4 }),
    k: read<EvenDecodeSpec>('float', { raw: rowRaw }),
    v: read<EvenDecodeSpec>('float', { raw: rowRaw }),
    parts: write<EvenDecodeSpec>('f32', { width: 4 }),
  },
  uniforms,
  wgsl: evenKernelText,
});

function evenKernelText(spec: EvenDecodeSpec): string {
  const { rows, headDim, valueDim, halves, full, lanesAKey, lanes, keysAStep } = spec;
  const quads = Math.ceil(valueDim / 4);
  const items = range(halves ? 1 : 2);
  // lanes beyond the row repeat its last elements: their q is 0, their sums are not stored
  const first = (dim: number): string => `${halves ? '' : '2u * '}${dim / 8 === lanesAKey ? 'c' : `min(c, ${dim / 8 - 1}u)`}`;
  const open = (name: string) => (u: number, half: 0 | 1) => (halves ? halvesOf(`${name}${u}_0`, half) : `${name}${u}_${half}`);
  const rowAt = (r: number): string => (full ? 'true' : `firstRow + ${r}u < uniforms.group`);
  const walk = decodeWalk(
    {
      ...spec,
      place: (u) => `let place${u} = min(n${u}, lastKey);`,
      fetch: (u) =>
        items.map((i) => `let keys${u}_${i} = next${u}_${i}; let values${u}_${i} = v[vAt + place${u} * uniforms.vRow + ${i}u];`).join(' '),
      ahead: {
        declare: (u) => items.map((i) => `var next${u}_${i} = ${rowRaw(spec)}();`).join(' '),
        fetch: (u, n) =>
          `{ let at = kAt + min(${n}, lastKey) * uniforms.kRow; ${items.map((i) => `next${u}_${i} = k[at + ${i}u];`).join(' ')} }`,
      },
      key: open('keys'),
      value: open('values'),
      logit: (s) => s,
      whole: `step + ${(lanes / lanesAKey) * keysAStep}u <= end`,
      seen: (u) => `n${u} < end`,
    },
    (r, item, value) =>
      `if (${rowAt(r)}) { store_parts(((b * uniforms.heads + firstHead + ${r}u) * uniforms.splits + group.y) * ${quads + 1}u + ${item}, ${value}); }`,
  );
  return `
    ${decodeVariables(spec)}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_invocation_id) subgroupLane: u32) {
      // the heads of a part run side by side: their rows lie behind each other
      ${
        full
          ? `let b = group.z; let firstHead = group.x * ${rows}u;`
          : `let b = group.z / uniforms.tiles; let firstRow = group.z % uniforms.tiles * ${rows}u; let firstHead = group.x * uniforms.group + firstRow;`
      }
      ${decodeLane(spec)}
      let begin = min(group.y * uniforms.splitKeys, uniforms.count);
      let end = min(begin + uniforms.splitKeys, uniforms.count);
      let lastKey = end - 1u;
      let kAt = base_k() + b * uniforms.kBatch + group.x * uniforms.kHead + ${first(headDim)};
      let vAt = base_v() + b * uniforms.vBatch + group.x * uniforms.vHead + ${first(valueDim)};
      ${range(rows)
        .map(
          (r) => `
      var q${r}a = vec4f(); var q${r}b = vec4f();
      if (${rowAt(r)} && c < ${headDim / 8}u) {
        let at = (b * uniforms.qBatch + (firstHead + ${r}u) * uniforms.qHead)${halves ? ' * 2u' : ''} + 2u * c;
        q${r}a = load_q(at) * uniforms.scale2; q${r}b = load_q(at + 1u) * uniforms.scale2;
      }`,
        )
        .join('')}
      ${walk}
    }`;
}

/** Writes parts as `runDecodeKernel` does. k and v begin at the first key that is seen. */
export function runEvenDecodeKernel(
  device: Device,
  spec: EvenDecodeSpec,
  tensors: Record<'q' | 'k' | 'v' | 'parts', Tensor>,
  values: Readonly<Record<keyof typeof uniforms, number>>,
  grid: readonly [number, number, number],
): void {
  const bound: Record<keyof typeof tensors, Operand> = { ...tensors };
  kernel.run(device, { spec, tensors: bound, uniforms: values, grid });
}
