// Decode attention of one query whose heads all see the same keys, scores as they are: what a generating model asks for.
// tile    see decode-text.ts; keys are loaded a step ahead of their use, values too where steps are short, 16 bytes a lane
// bytes   (headDim + valueDim) x size a key and KV head, and the parts
// limits  head dimensions are multiples of 8; few run-time values, the first 64 bytes of them ahead of any load: each line waited for costs 1 us
// source  flash-decoding (Dao et al. 2023)
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { decodeLane, decodeStep, type DecodeTile, decodeVariables, decodeWalk, halvesOf } from './decode-text.js';

export type EvenDecodeSpec = DecodeTile & {
  headDim: number;
  valueDim: number;
  /** Keys and values are f16, eight a load; else f32, four a load. */
  halves: boolean;
  /** The rows of a tile are the heads of a group: no tile is partly filled. */
  full: boolean;
};

const rowRaw = (spec: EvenDecodeSpec): string => (spec.halves ? 'vec4u' : 'vec4f');

/** Run-time values of every such kernel, strides of q in items of its binding; in the order in which a workgroup needs them. */
export const evenUniforms = {
  // keys seen
  count: 'u32',
  qBatch: 'u32',
  qHead: 'u32',
  // scale times log2 e
  scale2: 'f32',
  group: 'u32',
  tiles: 'u32',
  heads: 'u32',
  splits: 'u32',
} as const;
const rowUniforms = { kBatch: 'u32', kHead: 'u32', kRow: 'u32', vBatch: 'u32', vHead: 'u32', vRow: 'u32' } as const;

/** Where the rows of keys and values lie. */
export interface EvenRows {
  /** Names of the bindings. */
  keys: string;
  values: string;
  /** Expression of the KV head of a workgroup. */
  head: string;
  /** Statements ahead of the first load; `b`, `kvHead`, `c` and `begin` are known, the lane's elements are item `keyItem` and `valueItem` of a row. */
  setup: string;
  /** Statements at the head of each step. */
  step?: string;
  /** Expressions of the first item of the row of key number `n`; `first` is that of its step. */
  key(n: string, first: string): string;
  value(n: string): string;
}

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
  uniforms: { ...rowUniforms, ...evenUniforms } as const,
  wgsl: (spec: EvenDecodeSpec) =>
    evenDecodeText(
      spec,
      {
        keys: 'k',
        values: 'v',
        head: 'group.x',
        setup: `
      let kAt = base_k() + b * uniforms.kBatch + kvHead * uniforms.kHead + keyItem;
      let vAt = base_v() + b * uniforms.vBatch + kvHead * uniforms.vHead + valueItem;`,
        key: (n) => `kAt + ${n} * uniforms.kRow`,
        value: (n) => `vAt + ${n} * uniforms.vRow`,
      },
      spec.keysAStep <= 2,
    ),
});

/** The text of a kernel over rows that lie anywhere; values ahead as well pay where few keys a step leave registers for them. */
export function evenDecodeText(spec: EvenDecodeSpec, from: EvenRows, valuesAhead = false): string {
  const { rows, headDim, valueDim, halves, full, lanesAKey, lanes } = spec;
  const quads = Math.ceil(valueDim / 4);
  const stepKeys = decodeStep(spec);
  const items = range(halves ? 1 : 2);
  // lanes beyond the row repeat its last elements: their q is 0, their sums are not stored
  const item = (dim: number): string => `${halves ? '' : '2u * '}${dim / 8 === lanesAKey ? 'c' : `min(c, ${dim / 8 - 1}u)`}`;
  const open = (name: string) => (u: number, half: 0 | 1) => (halves ? halvesOf(`${name}${u}_0`, half) : `${name}${u}_${half}`);
  const variables = (name: string): string => items.map((i) => `var ${name}_${i} = ${rowRaw(spec)}();`).join(' ');
  const loads = (to: string, binding: string, at: string): string =>
    `{ let at = ${at}; ${items.map((i) => `${to}_${i} = ${binding}[at + ${i}u];`).join(' ')} }`;
  const rowAt = (r: string): string => (full ? 'true' : `firstRow + ${r} < uniforms.group`);
  const walk = decodeWalk(
    {
      ...spec,
      before: from.step ?? '',
      ...(valuesAhead
        ? {
            ahead: {
              declare: (u) => variables(`keys${u}`) + variables(`values${u}`),
              keys: (u, n, first) => loads(`keys${u}`, from.keys, from.key(`min(${n}, lastKey)`, first)),
              values: (u, n) => loads(`values${u}`, from.values, from.value(`min(${n}, lastKey)`)),
            },
          }
        : {
            fetch: (u) =>
              items.map((i) => `let keys${u}_${i} = next${u}_${i};`).join(' ') +
              variables(`values${u}`) +
              loads(`values${u}`, from.values, from.value(`min(n${u}, lastKey)`)),
            ahead: {
              declare: (u) => variables(`next${u}`),
              keys: (u, n, first) => loads(`next${u}`, from.keys, from.key(`min(${n}, lastKey)`, first)),
            },
          }),
      key: open('keys'),
      value: open('values'),
      logit: (s) => s,
      apart: `${stepKeys}u * uniforms.splits`,
      whole: `step + ${stepKeys}u <= end`,
      seen: (u) => `n${u} < end`,
    },
    (r, at, value) =>
      `if (${rowAt(r)}) { store_parts(((b * uniforms.heads + firstHead + ${r}) * uniforms.splits + group.y) * ${quads + 1}u + ${at}, ${value}); }`,
  );
  return `
    ${decodeVariables(spec)}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_invocation_id) subgroupLane: u32) {
      // the heads of a part run side by side: their rows lie behind each other
      let kvHead = ${from.head};
      ${
        full
          ? `let b = group.z; let firstHead = kvHead * ${rows}u;`
          : `let b = group.z / uniforms.tiles; let firstRow = group.z % uniforms.tiles * ${rows}u; let firstHead = kvHead * uniforms.group + firstRow;`
      }
      ${decodeLane(spec)}
      let keyItem = ${item(headDim)};
      let valueItem = ${item(valueDim)};
      // parts take steps in turn: all of them read one stretch of memory at a time
      let begin = group.y * ${stepKeys}u;
      let end = uniforms.count;
      let lastKey = end - 1u;
      ${from.setup}
      ${range(rows)
        .map(
          (r) => `
      var q${r}a = vec4f(); var q${r}b = vec4f();
      if (${rowAt(`${r}u`)} && c < ${headDim / 8}u) {
        let at = (b * uniforms.qBatch + (firstHead + ${r}u) * uniforms.qHead) * ${halves ? '2u' : '1u'} + 2u * c;
        q${r}a = load_q(at) * uniforms.scale2; q${r}b = load_q(at + 1u) * uniforms.scale2;
      }`,
        )
        .join('')}
      ${walk}
    }`;
}

type Values<U> = Readonly<Record<keyof U, number>>;

/** Writes parts as `runDecodeKernel` does. k and v begin at the first key that is seen. */
export function runEvenDecodeKernel(
  device: Device,
  spec: EvenDecodeSpec,
  tensors: Record<'q' | 'k' | 'v' | 'parts', Tensor>,
  values: Values<typeof evenUniforms> & Values<typeof rowUniforms>,
  grid: readonly [number, number, number],
): void {
  const bound: Record<keyof typeof tensors, Operand> = { ...tensors };
  kernel.run(device, { spec, tensors: bound, uniforms: values, grid });
}
