// Attention of a few query rows over stored rows: one part of the rows of one KV head a workgroup, the query heads of its group together.
// tile    R rows (query, head of the group) x 64 keys; a lane owns a key for scores, a quad of values for the sum
// bytes   reads each stored row once a tile of rows, writes R x (valueDim + 4) x 4 a part
// limits  head dimensions up to 256; no inf or NaN is formed: a hidden score is NEG and its weight 0
// source  flash-decoding (Dao et al. 2023): parts over keys, merged by their maxima and sums; online softmax (Milakov, Gimelshein 2018)
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel } from '../../kernel/define.js';
import { unroll } from '../../kernel/modules.js';
import type { KvCodec } from '../../seams/kv-codec.js';
import type { Tensor } from '../../tensor/tensor.js';
import { extraRowFloats, type KvGroup, layoutOf } from '../group.js';
import { forCodecs, layoutUniforms, loaderText, placeFunctions } from './rows.js';

/** A loop bound that compilers cannot count with: software drivers unroll what they can, and then compile for minutes. */
const bound = (n: number): string => `min(${n}u, ${n - 1}u + uniforms.total)`;

/** Position of rows that are no tokens. */
const hiddenQuery = -1073741824;

/** Keys of a tile: one a lane. */
export const tileKeys = 64;

export type AttendSpec = {
  keys: string;
  values: string;
  headDim: number;
  valueDim: number;
  /** Query rows of a tile. */
  rows: number;
  /** Further rows with a bias. */
  extra: boolean;
  softcap: boolean;
};

const uniforms = {
  ...layoutUniforms,
  total: 'u32',
  queries: 'u32',
  heads: 'u32',
  /** Query heads a KV head. */
  group: 'u32',
  tiles: 'u32',
  splits: 'u32',
  splitKeys: 'u32',
  extraRows: 'u32',
  qBatch: 'u32',
  qToken: 'u32',
  qHead: 'u32',
  /** 1 where batch entries took different numbers of tokens in the last append. */
  padded: 'u32',
  left: 'i32',
  right: 'i32',
  sinkTokens: 'u32',
  scale: 'f32',
  softcap: 'f32',
  /** Quads of a key: a loop bound that the compiler does not know, else software drivers unroll it. */
  keyQuads: 'u32',
} as const;

const bindingsFor = (keyItem: string, valueItem: string) => ({
  q: read<AttendSpec>('float'),
  keys: read<AttendSpec>('u32', { raw: keyItem }),
  values: read<AttendSpec>('u32', { raw: valueItem }),
  index: read<AttendSpec>('u32'),
  counts: read<AttendSpec>('i32'),
  extra: read<AttendSpec>('f32', { width: 4, when: ({ extra }) => extra }),
  parts: write<AttendSpec>('f32', { width: 4 }),
});

type AttendKernel = Kernel<AttendSpec, ReturnType<typeof bindingsFor>, typeof uniforms>;

function text(keys: KvCodec, values: KvCodec, { headDim, valueDim, rows, extra, softcap }: AttendSpec): string {
  const keyQuads = Math.ceil(headDim / 4);
  const valueQuads = Math.ceil(valueDim / 4);
  const keyGroups = Math.floor(tileKeys / valueQuads);
  // accumulators are summed over key groups through the query rows' memory, as many rows at a time as it holds
  const memory = Math.max(rows * keyQuads, tileKeys);
  const together = Math.min(rows, Math.floor(memory / tileKeys));
  const extraRow = extraRowFloats(headDim, valueDim) / 4;
  // one variable a row: arrays that are indexed in loops fall out of registers
  const own = (name: string, r: number): string => `${name}${r}`;
  const declare = (name: string, type: string): string => unroll(rows, (r) => `var ${own(name, r)}: ${type};`, ' ');
  const each = (line: (r: number) => string, from = 0, to = rows): string => unroll(to - from, (i) => `{ ${line(from + i)} }`);
  return `
    var<workgroup> queries: array<vec4f, ${memory}>;
    var<workgroup> weights: array<f32, ${rows * tileKeys}>;
    var<workgroup> tops: array<f32, ${rows * 8}>;
    var<workgroup> places: array<u32, ${tileKeys}>;
    ${placeFunctions}
    ${loaderText('key', 'keys', keys, headDim)}
    ${loaderText('value', 'values', values, valueDim)}
    ${extra ? extraLoaders(extraRow, keyQuads) : ''}
    // the token that a row holds
    fn positionOf(row: u32, seen: u32) -> i32 {
      if (uniforms.recent == 0u || row < uniforms.sinks) { return i32(row); }
      let newest = seen - uniforms.sinks - 1u;
      let back = (newest % uniforms.recent + uniforms.recent - (row - uniforms.sinks)) % uniforms.recent;
      return i32(uniforms.sinks + newest - back);
    }
    @compute @workgroup_size(${tileKeys})
    fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(workgroup, groups);
      if (index >= uniforms.total) { return; }
      let split = index % uniforms.splits;
      let tile = index / uniforms.splits % uniforms.tiles;
      let i = index / uniforms.splits / uniforms.tiles % uniforms.groupHeads;
      let b = index / uniforms.splits / uniforms.tiles / uniforms.groupHeads;
      let head = headAt(i);
      let seen = seenOf(b);
      let length = lengthOf(b, head);
      // queries are the newest tokens: of a padded entry only the first valid ones are tokens
      let valid = select(uniforms.queries, min(uniforms.queries, freshOf(b)), uniforms.padded == 1u);
      let first = i32(seen) - i32(valid);
      let rowCount = uniforms.queries * uniforms.group;
      let firstRow = tile * ${rows}u;
      // position of each row's query; ${hiddenQuery} for rows that are no tokens: they see nothing
      ${declare('at', 'i32')}
      ${each(
        (r) => `let token = (firstRow + ${r}u) / uniforms.group;
        ${own('at', r)} = select(${hiddenQuery}, first + i32(token), firstRow + ${r}u < rowCount && token < valid);`,
      )}
      for (var n = lane; n < ${rows}u * uniforms.keyQuads; n += ${tileKeys}u) {
        let row = firstRow + n / uniforms.keyQuads;
        let d = n % uniforms.keyQuads * 4u;
        var x = vec4f();
        if (row < rowCount) {
          let source = b * uniforms.qBatch + row / uniforms.group * uniforms.qToken + (head * uniforms.group + row % uniforms.group) * uniforms.qHead + d;
          for (var e = 0u; e < min(${headDim}u - d, 4u); e++) { x[e] = load_q(source + e); }
        }
        queries[n] = x * uniforms.scale;
      }
      // rows that this tile can see: the extra ones, leading sinks, and [low, high)
      let lastToken = min((firstRow + ${rows - 1}u) / uniforms.group, uniforms.queries - 1u);
      let wrapped = uniforms.recent != 0u && seen > uniforms.sinks + uniforms.recent;
      var low = u32(max(first + i32(firstRow / uniforms.group) - uniforms.left, 0));
      var high = u32(clamp(first + i32(min(lastToken, max(valid, 1u) - 1u)) + 1 + uniforms.right, 0, i32(length)));
      if (wrapped) { low = 0u; high = length; }
      low = min(max(low, min(uniforms.sinkTokens, high)), high);
      let lead = min(uniforms.sinkTokens, low);
      let count = uniforms.extraRows + lead + high - low;
      let begin = split * uniforms.splitKeys;
      let end = min(begin + uniforms.splitKeys, count);
      let quad = lane % ${valueQuads}u;
      let keyGroup = lane / ${valueQuads}u;
      ${declare('m', 'f32')} ${declare('l', 'f32')} ${declare('acc', 'vec4f')} ${declare('s', 'f32')}
      ${each((r) => `${own('m', r)} = NEG;`)}
      for (var start = begin; start < end; start += ${tileKeys}u) {
        workgroupBarrier();
        let n = start + lane;
        ${each((r) => `${own('s', r)} = 0.0;`)}
        var place = 0u;
        var bias = 0.0;
        var position = -1;
        if (n < end) {
          ${
            extra
              ? `if (n < uniforms.extraRows) {
                   place = (b * uniforms.groupHeads + i) * uniforms.extraRows + n;
                   bias = load_extra(place * ${extraRow}u).x;
                   place |= 0x80000000u;
                 } else {`
              : '{'
          }
            let behind = n - uniforms.extraRows;
            let row = select(low + behind - lead, behind, behind < lead);
            place = placeOf(b, i, row);
            position = positionOf(row, seen);
          }
          places[lane] = place;
          for (var d = 0u; d < uniforms.keyQuads; d++) {
            let k = ${extra ? 'select_key(place, d)' : 'keyQuad(place * uniforms.keyRow, d)'};
            ${each((r) => `${own('s', r)} += dot(queries[${r}u * uniforms.keyQuads + d], k);`)}
          }
        }
        let usable = n < end && bias > 0.5 * NEG;
        ${each(
          (r) => `let at = ${own('at', r)};
          let sees = usable && at != ${hiddenQuery} && position <= at + uniforms.right
            && (position < 0 || position >= at - uniforms.left || u32(position) < uniforms.sinkTokens);
          let score = (${softcap ? `uniforms.softcap * tanh(${own('s', r)} / uniforms.softcap)` : own('s', r)} + bias) * 1.4426950408889634;
          ${own('s', r)} = select(NEG, score, sees);
          weights[${r}u * ${tileKeys}u + lane] = ${own('s', r)};`,
        )}
        workgroupBarrier();
        for (var n8 = lane; n8 < ${bound(rows * 8)}; n8 += ${tileKeys}u) {
          var top = NEG;
          for (var e = 0u; e < ${bound(8)}; e++) { top = max(top, weights[n8 * 8u + e]); }
          tops[n8] = top;
        }
        workgroupBarrier();
        ${each(
          (r) => `var top = ${own('m', r)};
          for (var e = 0u; e < ${bound(8)}; e++) { top = max(top, tops[${r}u * 8u + e]); }
          let shrink = exp2(${own('m', r)} - top);
          let p = select(exp2(${own('s', r)} - top), 0.0, ${own('s', r)} <= 0.5 * NEG);
          ${own('m', r)} = top;
          ${own('l', r)} = ${own('l', r)} * shrink + p;
          ${own('acc', r)} *= shrink;
          weights[${r}u * ${tileKeys}u + lane] = p;`,
        )}
        workgroupBarrier();
        if (keyGroup < ${keyGroups}u) {
          let keys = min(end - start, ${tileKeys}u);
          for (var j = keyGroup; j < keys; j += ${keyGroups}u) {
            let x = ${extra ? 'select_value(places[j], quad)' : 'valueQuad(places[j] * uniforms.valueRow, quad)'};
            ${each((r) => `${own('acc', r)} += weights[${r}u * ${tileKeys}u + j] * x;`)}
          }
        }
      }
      workgroupBarrier();
      ${each((r) => `weights[${r}u * ${tileKeys}u + lane] = ${own('l', r)};`)}
      ${writeParts()}
    }`;

  /** Sums accumulators and weights over the lanes, and writes them. */
  function writeParts(): string {
    const part = (r: number, slot: string): string => `
      let row = firstRow + ${r}u;
      if (row < rowCount) {
        let token = row / uniforms.group;
        let part = ((b * uniforms.queries + token) * uniforms.heads + head * uniforms.group + row - token * uniforms.group) * uniforms.splits + split;
        if (lane < ${valueQuads}u) {
          var total = vec4f();
          for (var g = 0u; g < ${bound(keyGroups)}; g++) { total += queries[${slot} + g * ${valueQuads}u + lane]; }
          store_parts(part * ${valueQuads + 1}u + lane, total);
        }
        if (lane == ${tileKeys - 1}u) {
          var sum = 0.0;
          for (var e = 0u; e < ${bound(tileKeys)}; e++) { sum += weights[${r}u * ${tileKeys}u + e]; }
          store_parts(part * ${valueQuads + 1}u + ${valueQuads}u, vec4f(${own('m', r)}, sum, 0.0, 0.0));
        }
      }`;
    return unroll(Math.ceil(rows / together), (c) => {
      const begin = c * together;
      const end = Math.min(rows, begin + together);
      const slot = (r: number): string => `${(r - begin) * tileKeys}u`;
      return `workgroupBarrier();
        ${each((r) => `queries[${slot(r)} + lane] = ${own('acc', r)};`, begin, end)}
        workgroupBarrier();
        ${each((r) => part(r, slot(r)), begin, end)}`;
    });
  }
}

function extraLoaders(extraRow: number, keyQuads: number): string {
  const loader = (name: string, quadAt: number, stored: string): string => `
    fn select_${name}(place: u32, quad: u32) -> vec4f {
      if ((place & 0x80000000u) != 0u) { return load_extra((place & 0x7fffffffu) * ${extraRow}u + ${quadAt}u + quad); }
      return ${stored};
    }`;
  return `${loader('key', 1, 'keyQuad(place * uniforms.keyRow, quad)')}${loader('value', 1 + keyQuads, 'valueQuad(place * uniforms.valueRow, quad)')}`;
}

function kernelFor(keys: KvCodec, values: KvCodec): AttendKernel {
  return forCodecs('attend', keys, values, () =>
    defineKernel({
      name: 'kv-attend',
      bindings: bindingsFor(keys.item, values.item),
      uniforms,
      wgsl: (spec: AttendSpec) => text(keys, values, spec),
    }),
  );
}

/** Run-time values of an attend call that its groups share. */
export interface AttendValues {
  /** Extra rows of the group are seen. */
  extra: boolean;
  rows: number;
  tiles: number;
  splits: number;
  splitKeys: number;
  /** Batch entries took different numbers of tokens in the last append. */
  padded: boolean;
  left: number;
  right: number;
  sinkTokens: number;
  scale: number;
  softcap: number | undefined;
}

/** Writes the parts of a group's heads: f32 [batch, queries, heads, splits, 4 (valueQuads + 1)], sum, then maximum (base 2) and total weight. */
export function attendGroup(device: Device, { view, extra, stages }: KvGroup, q: Tensor, parts: Tensor, values: AttendValues): void {
  const [batch = 0, queries = 0, heads = 0] = q.shape;
  const bound = values.extra ? extra : undefined;
  const total = values.splits * values.tiles * view.heads.length * batch;
  kernelFor(view.keyCodec, view.valueCodec).run(device, {
    spec: {
      keys: view.keyCodec.name,
      values: view.valueCodec.name,
      headDim: view.headDim,
      valueDim: view.valueDim,
      rows: values.rows,
      extra: bound !== undefined,
      softcap: values.softcap !== undefined,
    },
    tensors: { q, keys: view.keys, values: view.values, index: view.index, counts: view.counts, extra: bound, parts },
    uniforms: {
      ...layoutOf(view),
      total,
      queries,
      heads,
      group: heads / view.kvHeads,
      tiles: values.tiles,
      splits: values.splits,
      splitKeys: values.splitKeys,
      extraRows: bound ? (stages.rows?.extraRows ?? 0) : 0,
      qBatch: q.strides[0] ?? 0,
      qToken: q.strides[1] ?? 0,
      qHead: q.strides[2] ?? 0,
      padded: values.padded ? 1 : 0,
      left: values.left,
      right: values.right,
      sinkTokens: values.sinkTokens,
      scale: values.scale,
      softcap: values.softcap ?? 1,
      keyQuads: Math.ceil(view.headDim / 4),
    },
    grid: [total],
  });
}
