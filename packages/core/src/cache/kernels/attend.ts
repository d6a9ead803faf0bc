// Attention of a few query rows over stored rows: one part of the rows of one KV head a workgroup, the query heads of its group together.
// tile    R rows (query, head of the group) x 64 keys; a lane owns a key for scores, a quad of the values of some rows for the sum
// bytes   reads each stored row once a tile of rows, writes R x (valueDim + 4) x 4 a part
// limits  head dimensions up to 256; no inf or NaN is formed: a hidden score is NEG and its weight 0
// source  flash-decoding (Dao et al. 2023): parts over keys, merged by their maxima and sums; online softmax (Milakov, Gimelshein 2018)
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel } from '../../kernel/define.js';
import { unroll } from '../../kernel/modules.js';
import type { KvCodec } from '../../seams/kv-codec.js';
import type { Tensor } from '../../tensor/tensor.js';
import { extraRowFloats, type KvGroup } from '../group.js';
import { hiddenQuery, positionFunction, queryTokens, queryUniforms, queryValues, seenRows } from './queries.js';
import { forCodecs, loaderText, placeFunctions } from './rows.js';

/** A loop bound that compilers cannot count with: software drivers unroll what they can, and then compile for minutes. */
const bound = (n: number): string => `(${n}u * uniforms.one)`;

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
  /** Only chosen pages are read. */
  chosen: boolean;
};

const uniforms = {
  ...queryUniforms,
  total: 'u32',
  keyQuads: 'u32',
  /** 1, unknown to compilers. */
  one: 'u32',
} as const;

const bindingsFor = (keyItem: string, valueItem: string) => ({
  q: read<AttendSpec>('float'),
  keys: read<AttendSpec>('u32', { raw: keyItem }),
  values: read<AttendSpec>('u32', { raw: valueItem }),
  index: read<AttendSpec>('u32'),
  counts: read<AttendSpec>('i32'),
  extra: read<AttendSpec>('f32', { width: 4, when: ({ extra }) => extra }),
  chosen: read<AttendSpec>('u32', { when: ({ chosen }) => chosen }),
  parts: write<AttendSpec>('f32', { width: 4 }),
});

type AttendKernel = Kernel<AttendSpec, ReturnType<typeof bindingsFor>, typeof uniforms>;

/** Who sums what: a lane owns a quad of the values of some rows, over all keys of a tile or over a slice of them. */
interface Shares {
  valueQuads: number;
  /** Lanes side by side on one quad. */
  lanesAQuad: number;
  /** Rows a lane sums. */
  rowsALane: number;
  /** Slices of the keys that lanes share a row by. */
  slices: number;
}

function sharesOf(rows: number, valueDim: number): Shares {
  const valueQuads = Math.ceil(valueDim / 4);
  const lanesAQuad = Math.floor(tileKeys / valueQuads);
  return { valueQuads, lanesAQuad, rowsALane: Math.ceil(rows / lanesAQuad), slices: Math.max(1, Math.floor(lanesAQuad / rows)) };
}

/** The kernel's text for two codecs. */
export function attendText(keys: KvCodec, values: KvCodec, { headDim, valueDim, rows, extra, softcap, chosen }: AttendSpec): string {
  const keyQuads = Math.ceil(headDim / 4);
  const { valueQuads, lanesAQuad, rowsALane, slices } = sharesOf(rows, valueDim);
  const extraRow = extraRowFloats(headDim, valueDim) / 4;
  const few = Math.max(4, rows);
  // named variables: arrays that are indexed in loops fall out of registers
  const each = (line: (r: number) => string): string => unroll(rows, (r) => `{ ${line(r)} }`);
  const eachOwn = (line: (c: number) => string): string => unroll(rowsALane, (c) => `{ ${line(c)} }`);
  const ownRow = (c: number): string => (slices > 1 ? `mine % ${rows}u` : `mine + ${c * lanesAQuad}u`);
  return `
    var<workgroup> queries: array<vec4f, ${Math.max(rows * keyQuads, tileKeys)}>;
    var<workgroup> weights: array<f32, ${rows * tileKeys}>;
    var<workgroup> tops: array<f32, ${rows * 8}>;
    var<workgroup> places: array<u32, ${tileKeys}>;
    // of each row: its query's position, the maximum so far, how much that shrank what was summed, the sum of weights
    var<workgroup> positions: array<i32, ${few}>;
    var<workgroup> maxima: array<f32, ${few}>;
    var<workgroup> shrinks: array<f32, ${few}>;
    ${placeFunctions}
    ${loaderText('key', 'keys', keys, headDim)}
    ${loaderText('value', 'values', values, valueDim)}
    ${extra ? extraLoaders(extraRow, keyQuads) : ''}
    ${positionFunction}
    @compute @workgroup_size(${tileKeys})
    fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(workgroup, groups);
      if (index >= uniforms.total) { return; }
      let split = index % uniforms.splits;
      let tile = index / uniforms.splits % uniforms.tiles;
      let i = index / uniforms.splits / uniforms.tiles % uniforms.groupHeads;
      let b = index / uniforms.splits / uniforms.tiles / uniforms.groupHeads;
      ${queryTokens}
      let firstRow = tile * ${rows}u;
      if (lane < ${rows}u) {
        let token = (firstRow + lane) / uniforms.group;
        positions[lane] = select(${hiddenQuery}, first + i32(token), firstRow + lane < rowCount && token < valid);
        maxima[lane] = NEG;
      }
      for (var n = lane; n < ${rows}u * uniforms.keyQuads; n += ${tileKeys}u) {
        let row = firstRow + n / uniforms.keyQuads;
        let d = n % uniforms.keyQuads * 4u;
        var x = vec4f();
        if (row < rowCount) {
          let source = b * uniforms.qBatch + row / uniforms.group * uniforms.qToken + (head * uniforms.group + row % uniforms.group) * uniforms.qHead + d;
          x.x = load_q(source);
          ${[1, 2, 3].map((e) => (e < headDim ? `if (d + ${e}u < ${headDim}u) { x.${'xyzw'[e]} = load_q(source + ${e}u); }` : '')).join(' ')}
        }
        queries[n] = x * uniforms.scale;
      }
      ${seenRows(rows, chosen)}
      let begin = split * uniforms.splitKeys;
      let end = min(begin + uniforms.splitKeys, count);
      // what this lane sums: a quad of rows mine, mine + ${lanesAQuad}, ..
      let quad = lane % ${valueQuads}u;
      let mine = lane / ${valueQuads}u;
      let sums = mine < ${slices > 1 ? slices * rows : Math.min(rows, lanesAQuad)}u;
      let slice = ${slices > 1 ? `mine / ${rows}u` : '0u'};
      ${unroll(rowsALane, (c) => `var acc${c} = vec4f(); var l${c} = 0.0;`)}
      for (var start = begin; start < end; start += ${tileKeys}u) {
        workgroupBarrier();
        let n = start + lane;
        ${unroll(rows, (r) => `var s${r} = 0.0;`, ' ')}
        var bias = 0.0;
        var position = -1;
        var present = n < end;
        if (n < end) {
          var place = 0u;
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
            ${
              chosen
                ? `let page = load_chosen((b * uniforms.kvHeads + head) * uniforms.chosenPages + behind / uniforms.pageTokens);
            let row = min(page, uniforms.pages) * uniforms.pageTokens + behind % uniforms.pageTokens;
            present = row < length;`
                : 'let row = select(low + behind - lead, behind, behind < lead);'
            }
            place = ${chosen ? 'placeOf(b, i, select(0u, row, present))' : 'placeOf(b, i, row)'};
            position = positionOf(row, seen);
          }
          places[lane] = place;
          for (var d = 0u; d < uniforms.keyQuads; d++) {
            let k = ${extra ? 'select_key(place, d)' : 'keyQuad(place * uniforms.keyRow, d)'};
            ${unroll(rows, (r) => `s${r} += dot(queries[${r}u * uniforms.keyQuads + d], k);`)}
          }
        }
        let usable = present && bias > 0.5 * NEG;
        ${each(
          (r) => `let at = positions[${r}];
          let sees = usable && at != ${hiddenQuery} && position <= at + uniforms.right
            && (position < 0 || position >= at - uniforms.left || u32(position) < uniforms.sinkTokens);
          let score = (${softcap ? `uniforms.softcap * tanh(s${r} / uniforms.softcap)` : `s${r}`} + bias) * ${Math.LOG2E};
          weights[${r * tileKeys}u + lane] = select(NEG, score, sees);`,
        )}
        workgroupBarrier();
        for (var n8 = lane; n8 < ${bound(rows * 8)}; n8 += ${tileKeys}u) {
          var top = NEG;
          for (var e = 0u; e < ${bound(8)}; e++) { top = max(top, weights[n8 * 8u + e]); }
          tops[n8] = top;
        }
        workgroupBarrier();
        if (lane < ${rows}u) {
          let before = maxima[lane];
          var top = before;
          for (var e = 0u; e < ${bound(8)}; e++) { top = max(top, tops[lane * 8u + e]); }
          shrinks[lane] = exp2(before - top);
          maxima[lane] = top;
        }
        workgroupBarrier();
        ${rows === 1 ? '{ let r = 0u;' : `for (var r = 0u; r < ${bound(rows)}; r++) {`}
          let score = weights[r * ${tileKeys}u + lane];
          weights[r * ${tileKeys}u + lane] = select(exp2(score - maxima[r]), 0.0, score <= 0.5 * NEG);
        }
        workgroupBarrier();
        if (sums) {
          ${eachOwn((c) => `let shrink = shrinks[${boundedRow(ownRow(c), rows)}]; acc${c} *= shrink; l${c} *= shrink;`)}
          let keys = min(end - start, ${tileKeys}u);
          for (var j = slice; j < keys; j += ${slices}u) {
            let x = ${extra ? 'select_value(places[j], quad)' : 'valueQuad(places[j] * uniforms.valueRow, quad)'};
            ${eachOwn((c) => `let w = weights[${boundedRow(ownRow(c), rows)} * ${tileKeys}u + j]; acc${c} += w * x; l${c} += w;`)}
          }
        }
      }
      ${slices > 1 ? joinSlices(rows, valueQuads, slices) : 'workgroupBarrier();'}
      ${eachOwn(
        (c) => `let own = ${slices > 1 ? 'mine' : ownRow(c)};
        let row = firstRow + own;
        if (sums && own < ${rows}u && row < rowCount) {
          let token = row / uniforms.group;
          let part = ((b * uniforms.queries + token) * uniforms.heads + head * uniforms.group + row - token * uniforms.group) * uniforms.splits + split;
          store_parts(part * ${valueQuads + 1}u + quad, acc${c});
          if (quad == 0u) { store_parts(part * ${valueQuads + 1}u + ${valueQuads}u, vec4f(maxima[own], l${c}, 0.0, 0.0)); }
        }`,
      )}
    }`;
}

/** A row inside the tile: lanes whose last row lies beyond it sum the last one for nothing. */
function boundedRow(row: string, rows: number): string {
  return rows === 1 ? '0u' : `min(${row}, ${rows - 1}u)`;
}

/** Sums what lanes of one row summed over their slices of the keys, in the order of slices. */
function joinSlices(rows: number, valueQuads: number, slices: number): string {
  const step = rows * valueQuads;
  return `
      workgroupBarrier();
      queries[lane] = acc0;
      weights[lane] = l0;
      workgroupBarrier();
      if (mine < ${rows}u) {
        for (var other = 1u; other < ${bound(slices)}; other++) { acc0 += queries[other * ${step}u + lane]; l0 += weights[other * ${step}u + lane]; }
      }`;
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
      wgsl: (spec: AttendSpec) => attendText(keys, values, spec),
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
  /** u32 [batch, kvHeads, n], contiguous. */
  pages: Tensor | undefined;
}

/** Writes the parts of a group's heads: f32 [batch, queries, heads, splits, 4 (valueQuads + 1)], sum, then maximum (base 2) and total weight. */
export function attendGroup(device: Device, own: KvGroup, q: Tensor, parts: Tensor, values: AttendValues): void {
  const { view, extra } = own;
  const batch = q.dim(0);
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
      chosen: values.pages !== undefined,
    },
    tensors: { q, keys: view.keys, values: view.values, index: view.index, counts: view.counts, extra: bound, chosen: values.pages, parts },
    uniforms: {
      total,
      keyQuads: Math.ceil(view.headDim / 4),
      one: 1,
      ...queryValues(own, q, values, { tiles: values.tiles, bound: bound !== undefined, width: 1 }),
    },
    grid: [total],
  });
}
