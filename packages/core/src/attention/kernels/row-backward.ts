// Both backward sweeps for f32 rows: owned rows and their gradients stay in registers, several lanes share a row (row-lanes.ts).
// - queries own the rows: P and dS against the keys that they see, dq = scale dS K
// - keys own the rows: P^T and dS^T against the queries that see them, dv = P^T dOut, dk = scale dS^T q, row sums give dBias
// tile    rowsALane x lanes / share rows, `columns` rows of the other side a step, `together` of them at a time
// bytes   the owned rows once, the streamed rows once a tile that they meet
// limits  as row-forward.ts
// source  Dao 2023 (FlashAttention-2), algorithm 2; deterministic, nothing is summed across workgroups but parts in order
import type { Device } from '../../device/device.js';
import { write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import {
  backwardFunctions,
  backwardReads,
  type BackwardTensors,
  backwardUniforms,
  type BackwardUniforms,
  keySweepUniforms,
  type KeySweepUniforms,
} from './backward-bindings.js';
import { type PairPlace, type ScoreSpec, slopeText } from './common.js';
import { keyPosition } from './dkv.js';
import { tilePosition } from './forward.js';
import { bound } from './matrix-memory.js';
import { steps, testsEveryTile } from './matrix-steps.js';
import { keyWalk, queryWalk } from './matrix-walks.js';
import { pairBits, pairSeen, rowFactor, rowLogit, seesKeys, storeRow } from './row-forward.js';
import { ownedRows, RowText, type RowTile } from './row-lanes.js';

export type RowBackwardSpec = ScoreSpec &
  RowTile & {
    vectorOut: boolean;
    /** For the sweep of keys. */
    split: boolean;
    biasGradient: boolean;
  };

const bindings = {
  ...backwardReads<RowBackwardSpec>(),
  grads: write<RowBackwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
};

/** Query tiles a head where queries own the rows. */
const uniforms = { ...backwardUniforms, tiles: 'u32', ...keySweepUniforms } as const;

type RowBackwardKernel = Kernel<RowBackwardSpec, typeof bindings, typeof uniforms>;

function define(name: string, wgsl: (spec: RowBackwardSpec) => string): RowBackwardKernel {
  return defineKernel({ name, tier: 'subgroups', forms: ['baseline', 'subgroups', 'matrix'], bindings, uniforms, wgsl });
}

const kernels = {
  queries: /* @__PURE__ */ define('attention-dq', textOfQueries),
  keys: /* @__PURE__ */ define('attention-dkv', textOfKeys),
};

/**
 * Records a sweep: heads (KV heads), by tiles and parts, by batch.
 * @param owner whose rows the workgroups own: queries give dq, keys give dk, dv and dBias in one buffer
 */
export function runRowBackward(
  device: Device,
  owner: 'queries' | 'keys',
  spec: RowBackwardSpec,
  tensors: BackwardTensors & { grads: Tensor },
  values: BackwardUniforms & KeySweepUniforms & { tiles: number },
  grid: readonly [number, number, number],
): void {
  kernels[owner].run(device, { spec, tensors, uniforms: values, grid });
}

const entry = (spec: RowBackwardSpec, arrays: string, main: string): string => `
    ${arrays}
    ${backwardFunctions(spec, 4)}
    @diagnostic(off, subgroup_uniformity)
    @compute @workgroup_size(${spec.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) { ${main} }`;

/**
 * `p<c>` is P of the own row against each streamed row, and `g<c>`, the product of dOut and v, becomes the gradient of the raw score `s<c>`.
 * @param names the pair's place, the statistics of its query (a vec2f), the key's bias, and whether it is seen
 */
function gradients(
  spec: RowBackwardSpec,
  t: RowText,
  masked: boolean,
  names: { place: (c: number) => PairPlace; stat: (c: number) => string; bias: (c: number) => string; seen: (c: number) => string },
  withScore: (c: number, score: string) => string = () => '',
): string {
  return t.columns
    .map((c) => {
      const slope = slopeText(spec, `s${c}`, names.place(c));
      return `
      var p${c} = exp2(${rowLogit(spec, `s${c}`, names.place(c), names.bias(c))} - ${names.stat(c)}.x);
      ${masked ? `if (masked) { p${c} = select(0.0, p${c}, ${names.seen(c)}); }` : ''}
      g${c} = p${c} * (g${c} - ${names.stat(c)}.y);
      ${withScore(c, `g${c}`)}
      ${slope ? `g${c} *= ${slope};` : ''}`;
    })
    .join('\n');
}

function textOfQueries(spec: RowBackwardSpec): string {
  const { headDim, valueDim, columns, together } = spec;
  const rows = ownedRows(spec);
  const t = new RowText(spec);
  const kv = (c: number): string => `(keyStart + n + ${c}u)`;
  const compute = (masked: boolean): string => `
    ${masked ? pairBits(spec) : ''}
    for (var n = 0u; n < ${bound(spec, columns)}; n += ${together}u) {
      ${t.products('s', 'q', 'keys', headDim, 'n')}
      ${t.products('g', 'dOut', 'values', valueDim, 'n')}
      ${gradients(spec, t, masked, {
        place: (c) => ({ b: 'b', h: 'h', q: 'place', kv: kv(c) }),
        stat: () => 'stat',
        bias: (c) => `keyBiasOf(b, h, ${kv(c)})`,
        seen: (c) => pairSeen(spec, c, `seen(b, h, place, ${kv(c)}, keyStop)`),
      })}
      ${t.accumulate('dq', 'g', 'keys', headDim, 'n')}
    }`;
  const store = (j: number): string => `{ let row${j} = rowStart + ${t.row(j)};
    let first = ((b * uniforms.queries + row${j}) * uniforms.heads + h) * ${headDim}u;
    if (row${j} < rowEnd) { ${t
      .items(headDim)
      .map((i) => storeRow('grads', spec.vectorOut, headDim, 'first', t.item(i), `dq${j}_${i} * uniforms.scale`))
      .join('\n')} } }`;
  return entry(
    spec,
    `${t.declare('keys', headDim)} ${t.declare('values', valueDim)}`,
    `
    ${tilePosition({ ...spec, rows, split: false }, { tile: 'group.y', head: 'group.x' })}
    let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
    ${t.place}
    let rowAt = rowStart + ownRow;
    let place = i32(rowAt) + queryOffset;
    let stat = statOf((b * uniforms.queries + rowAt) * uniforms.heads + h, rowAt < rowEnd);
    ${t.each(headDim, (j, i) => `let q${j}_${i} = items_q(qBase, rowStart + ${t.row(j)}, rowEnd, ${t.item(i)})${rowFactor(spec)}; var dq${j}_${i} = vec4f();`)}
    ${t.each(valueDim, (j, i) => `let dOut${j}_${i} = items_dOut(dOutBase, rowStart + ${t.row(j)}, rowEnd, ${t.item(i)});`)}
    ${steps(keyWalk(spec, columns), [t.stream(spec, 'keys', 'k', headDim), t.stream(spec, 'values', 'v', valueDim)], {
      start: 'keyStart',
      stop: 'keyStop',
      one: spec.opaque || testsEveryTile(spec),
      sees: `subgroupAny(${seesKeys(spec)})`,
      compute,
    })}
    ${t.slots.map(store).join('\n')}`,
  );
}

function textOfKeys(spec: RowBackwardSpec): string {
  const { headDim, valueDim, columns, together, biasGradient, lanes } = spec;
  const rows = ownedRows(spec);
  const t = new RowText(spec);
  const place = (c: number): string => `(i32(rowStart + n + ${c}u) + queryOffset)`;
  const compute = (masked: boolean): string => `
    ${masked ? pairBits(spec) : ''}
    for (var n = 0u; n < ${bound(spec, columns)}; n += ${together}u) {
      ${t.products('s', 'k', 'queries', headDim, 'n')}
      ${t.products('g', 'v', 'cotangents', valueDim, 'n')}
      ${t.columns.map((c) => `let stat${c} = columnStats[n + ${c}u];`).join(' ')}
      ${gradients(
        spec,
        t,
        masked,
        {
          place: (c) => ({ b: 'b', h: 'h', q: place(c), kv: 'keyAt' }),
          stat: (c) => `stat${c}`,
          bias: () => 'bias',
          seen: (c) => pairSeen(spec, c, `seen(b, h, ${place(c)}, keyAt, keyStop)`),
        },
        (_, g) => (biasGradient ? `dBias += ${g};` : ''),
      )}
      ${t.accumulate('dv', 'p', 'cotangents', valueDim, 'n')}
      ${t.accumulate('dk', 'g', 'queries', headDim, 'n')}
    }`;
  const part = spec.split ? 'split * uniforms.partSize + ' : '';
  const store = (name: string, dim: number, from: string, factor: string) => (j: number) =>
    `{ let key${j} = keyStart + ${t.row(j)};
    let first = ${part}${from}((b * uniforms.storedKeys + key${j}) * uniforms.kvHeads + kvHead) * ${dim}u;
    if (key${j} < keyLimit) { ${t
      .items(dim)
      .map((i) => storeRow('grads', spec.vectorOut, dim, 'first', t.item(i), `${name}${j}_${i}${factor}`))
      .join('\n')} } }`;
  return entry(
    spec,
    `${t.declare('queries', headDim)} ${t.declare('cotangents', valueDim)} var<workgroup> columnStats: array<vec2f, ${columns}>;`,
    `
    ${keyPosition({ ...spec, rows }, { tile: 'group.y', head: 'group.x' })}
    ${t.place}
    let keyAt = keyStart + ownRow;
    ${t.each(headDim, (j, i) => `let k${j}_${i} = items_k(kBase, keyStart + ${t.row(j)}, keyStop, ${t.item(i)})${rowFactor(spec)}; var dk${j}_${i} = vec4f();`)}
    ${t.each(valueDim, (j, i) => `let v${j}_${i} = items_v(vBase, keyStart + ${t.row(j)}, keyStop, ${t.item(i)}); var dv${j}_${i} = vec4f();`)}
    for (var member = 0u; member < uniforms.group; member++) {
      let h = kvHead * uniforms.group + member;
      let qBase = b * uniforms.qBatch + h * uniforms.qHead;
      let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
      ${spec.keyBias ? 'let bias = keyBiasOf(b, h, keyAt);' : ''}
      ${biasGradient ? 'var dBias = 0.0;' : ''}
      ${steps(
        queryWalk(spec, columns, rows, spec.split),
        [t.stream(spec, 'queries', 'q', headDim), t.stream(spec, 'cotangents', 'dOut', valueDim)],
        {
          start: 'rowStart',
          stop: 'rowEnd',
          one: spec.opaque || testsEveryTile(spec),
          sees: `subgroupAny(${seenByQueries(spec)})`,
          compute,
          extras: [
            {
              declare: '',
              fetch: '',
              put: `for (var at = lane; at < ${columns}u; at += ${lanes}u) {
            columnStats[at] = statOf((b * uniforms.queries + nextStart + at) * uniforms.heads + h, nextStart + at < nextStop); }`,
            },
          ],
        },
      )}
      ${
        biasGradient
          ? `if (part < ${spec.rowsALane}u && keyAt < keyLimit) {
        store_grads(${part}uniforms.dBiasAt + (b * uniforms.heads + h) * uniforms.storedKeys + keyAt, dBias);
      }`
          : ''
      }
    }
    ${t.slots.map(store('dk', headDim, '', ' * uniforms.scale')).join('\n')}
    ${t.slots.map(store('dv', valueDim, 'uniforms.dvAt + ', '')).join('\n')}`,
  );
}

/** Whether the own key may be seen by a query of the tile. */
function seenByQueries(spec: RowBackwardSpec): string {
  if (spec.list === 'runs') return 'keyAt < keyStop';
  return `keyAt < keyStop && i32(keyAt) <= i32(rowStart) + ${spec.columns - 1} + queryOffset + uniforms.right && (i32(keyAt) >= i32(rowStart) + queryOffset - uniforms.left || keyAt < uniforms.prefix)`;
}
