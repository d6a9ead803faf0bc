// Decode attention over stored rows: the text of attention/kernels/decode-text.ts over pages, rings, extra rows and codes.
// tile    see there; the lanes of a key find the places of its stream's keys, one each, and pass them on by shuffles
// bytes   reads each stored row once a tile of rows, 16 bytes a load where rows are f16
// limits  head dimensions are multiples of 8, a key's lanes lie inside a subgroup; else kernels/attend.ts serves
// source  flash-decoding (Dao et al. 2023); pages: vLLM (Kwon et al. 2023, section 4)
import { decodeLane, type DecodeTile, decodeVariables, decodeWalk, halvesOf } from '../../attention/kernels/decode-text.js';
import type { DecodePlan } from '../../attention/decode.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import type { KvCodec } from '../../seams/kv-codec.js';
import type { Tensor } from '../../tensor/tensor.js';
import { f16Codec } from '../codec.js';
import { extraRowFloats, type KvGroup } from '../group.js';
import type { AttendValues } from './attend.js';
import { hiddenQuery, positionFunction, queryTokens, queryUniforms, queryValues, seenRows } from './queries.js';
import { forCodecs, loaderText, placeFunctions } from './rows.js';

type DecodeSpec = DecodeTile & {
  keys: string;
  values: string;
  headDim: number;
  valueDim: number;
  extra: boolean;
  softcap: boolean;
  chosen: boolean;
};

/** Rows of plain halves are read 16 bytes a lane. */
const itemOf = (codec: KvCodec): string => (codec === f16Codec ? 'vec4u' : codec.item);

const bindingsFor = (keys: KvCodec, values: KvCodec) => ({
  q: read<DecodeSpec>('float', { width: 4 }),
  keys: read<DecodeSpec>('u32', { raw: itemOf(keys) }),
  values: read<DecodeSpec>('u32', { raw: itemOf(values) }),
  index: read<DecodeSpec>('u32'),
  counts: read<DecodeSpec>('i32'),
  extra: read<DecodeSpec>('f32', { width: 4, when: ({ extra }) => extra }),
  chosen: read<DecodeSpec>('u32', { when: ({ chosen }) => chosen }),
  parts: write<DecodeSpec>('f32', { width: 4 }),
});

/** Loads of one side: statements that fetch key `u`, and the two vec4f of it. */
function side(name: 'key' | 'value', codec: KvCodec, spec: DecodeSpec): { fetch(u: number): string; open(u: number, half: 0 | 1): string } {
  const dim = name === 'key' ? spec.headDim : spec.valueDim;
  const pool = `${name}s`;
  const row = (u: number): string => `place${u} * uniforms.${name}Row`;
  const lane = dim / 8 === spec.lanesAKey ? 'c' : `min(c, ${dim / 8 - 1}u)`;
  const extraQuad = 1 + (name === 'key' ? 0 : Math.ceil(spec.headDim / 4));
  const extraRow = extraRowFloats(spec.headDim, spec.valueDim) / 4;
  const plain = codec === f16Codec;
  return {
    fetch: (u) => {
      const at = row(u);
      if (plain && !spec.extra) return `let ${name}${u} = ${pool}[base_${pool}() + ${at} / 2u + ${lane}];`;
      const stored = (half: number): string =>
        plain ? halvesOf(`${pool}[base_${pool}() + ${at} / 2u + ${lane}]`, half as 0 | 1) : `${name}Quad(${at}, 2u * ${lane} + ${half}u)`;
      const load = (half: number): string =>
        spec.extra
          ? `var ${name}${u}_${half}: vec4f; if ((place${u} & 0x80000000u) != 0u) { ${name}${u}_${half} = load_extra((place${u} & 0x7fffffffu) * ${extraRow}u + ${extraQuad}u + 2u * ${lane} + ${half}u); } else { ${name}${u}_${half} = ${stored(half)}; }`
          : `let ${name}${u}_${half} = ${stored(half)};`;
      return `${load(0)} ${load(1)}`;
    },
    open: (u, half) => (plain && !spec.extra ? halvesOf(`${name}${u}`, half) : `${name}${u}_${half}`),
  };
}

function decodeKernelText(keyCodec: KvCodec, valueCodec: KvCodec, spec: DecodeSpec): string {
  const { rows, headDim, valueDim, lanesAKey, lanes, keysAStep, extra, softcap, chosen } = spec;
  const streams = lanes / lanesAKey;
  const quads = Math.ceil(valueDim / 4);
  const [keys, values] = [side('key', keyCodec, spec), side('value', valueCodec, spec)];
  const walk = decodeWalk(
    {
      ...spec,
      // lane c of a key's lanes looks for the c-th key of the step
      before: `
        let ownN = step + min(c, ${keysAStep - 1}u) * ${streams}u + stream;
        var ownPlace = 0u;
        var ownBias = 0.0;
        var ownPosition = ${absent};
        if (ownN < end) {
          ${
            extra
              ? `if (ownN < uniforms.extraRows) {
            ownPlace = (b * uniforms.groupHeads + i) * uniforms.extraRows + ownN;
            ownBias = load_extra(ownPlace * ${extraRowFloats(headDim, valueDim) / 4}u).x;
            ownPlace |= 0x80000000u;
            ownPosition = select(${absent}, -1, ownBias > 0.5 * NEG);
          } else {`
              : '{'
          }
            let behind = ownN - uniforms.extraRows;
            ${
              chosen
                ? `let page = load_chosen((b * uniforms.kvHeads + head) * uniforms.chosenPages + behind / uniforms.pageTokens);
            let at = min(page, uniforms.pages) * uniforms.pageTokens + behind % uniforms.pageTokens;
            if (at < length) { ownPlace = placeOf(b, i, at); ownPosition = positionOf(at, seen); }`
                : `let at = select(low + behind - lead, behind, behind < lead);
            ownPlace = placeOf(b, i, at);
            ownPosition = positionOf(at, seen);`
            }
          }
        }`,
      place: (u) => `
        let place${u} = ${passed('ownPlace', u)};
        let position${u} = ${passed('ownPosition', u)};
        ${extra ? `let bias${u} = ${passed('ownBias', u)};` : ''}`,
      fetch: (u) => `${keys.fetch(u)} ${values.fetch(u)}`,
      key: keys.open,
      value: values.open,
      logit: (s, u) => {
        const score = softcap ? `uniforms.softcap * tanh(${s} / uniforms.softcap)` : s;
        return `(${score}${extra ? ` + bias${u}` : ''}) * ${Math.LOG2E}`;
      },
      ...(!extra &&
        !chosen && {
          whole: `step + ${streams * keysAStep}u <= end && step >= lead && valid == uniforms.queries && uniforms.recent == 0u && i32(low + step - lead) >= first + i32(lastToken) - uniforms.left && i32(low + step - lead) + ${streams * keysAStep} <= first + i32(firstRow / uniforms.group) + uniforms.right + 1`,
        }),
      seen: (u) =>
        `position != ${hiddenQuery} && position${u} <= position + uniforms.right && (position${u} < 0 || position${u} >= position - uniforms.left || u32(position${u}) < uniforms.sinkTokens)`,
    },
    (r, item, value) => `{
        let at = firstRow + ${r};
        if (at < rowCount) {
          let part = ((b * uniforms.queries + at / uniforms.group) * uniforms.heads + head * uniforms.group + at % uniforms.group) * uniforms.splits + split;
          store_parts(part * ${quads + 1}u + ${item}, ${value});
        }
      }`,
  );
  return `
    ${decodeVariables(spec)}
    ${placeFunctions}
    ${keyCodec === f16Codec ? '' : loaderText('key', 'keys', keyCodec, headDim)}
    ${valueCodec === f16Codec ? '' : loaderText('value', 'values', valueCodec, valueDim)}
    ${positionFunction}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_invocation_id) subgroupLane: u32) {
      let split = workgroup.x % uniforms.splits;
      let firstRow = workgroup.x / uniforms.splits * ${rows}u;
      let i = workgroup.y;
      let b = workgroup.z;
      ${queryTokens}
      ${decodeLane(spec)}
      let token = (firstRow + ownRow) / uniforms.group;
      let position = select(${hiddenQuery}, first + i32(token), firstRow + ownRow < rowCount && token < valid);
      ${range(rows)
        .map(
          (r) => `
      var q${r}a = vec4f(); var q${r}b = vec4f();
      if (firstRow + ${r}u < rowCount && c < ${headDim / 8}u) {
        let row = firstRow + ${r}u;
        let at = b * uniforms.qBatch + row / uniforms.group * uniforms.qToken + (head * uniforms.group + row % uniforms.group) * uniforms.qHead + 2u * c;
        q${r}a = load_q(at) * uniforms.scale; q${r}b = load_q(at + 1u) * uniforms.scale;
      }`,
        )
        .join('')}
      ${seenRows(rows, chosen)}
      let begin = min(split * uniforms.splitKeys, count);
      let end = min(begin + uniforms.splitKeys, count);
      ${walk}
    }`;
}

/** Position of a key that is not there: beyond what any query sees. */
const absent = 2 ** 31 - 1;

/** A value of the lane that found key `u` of this stream. */
function passed(value: string, u: number): string {
  return `subgroupShuffle(${value}, firstLane + ${u}u)`;
}

type DecodeKernel = Kernel<DecodeSpec, ReturnType<typeof bindingsFor>, typeof queryUniforms>;

function kernelFor(keys: KvCodec, values: KvCodec): DecodeKernel {
  return forCodecs('decode', keys, values, () =>
    defineKernel({
      name: 'kv-decode',
      tier: 'subgroups',
      forms: ['baseline', 'subgroups'],
      bindings: bindingsFor(keys, values),
      uniforms: queryUniforms,
      wgsl: (spec: DecodeSpec) => decodeKernelText(keys, values, spec),
    }),
  );
}

/** Writes the parts of a group's heads, as `attendGroup` does; q has rows that start at multiples of 4 elements. */
export function decodeGroup(device: Device, own: KvGroup, q: Tensor, parts: Tensor, plan: DecodePlan, values: AttendValues): void {
  const { view, extra } = own;
  const batch = q.dim(0);
  const bound = values.extra ? extra : undefined;
  const { rows, lanesAKey, keysAStep, lanes, joined } = plan;
  kernelFor(view.keyCodec, view.valueCodec).run(device, {
    spec: {
      rows,
      lanesAKey,
      keysAStep,
      lanes,
      joined,
      keys: view.keyCodec.name,
      values: view.valueCodec.name,
      headDim: view.headDim,
      valueDim: view.valueDim,
      extra: bound !== undefined,
      softcap: values.softcap !== undefined,
      chosen: values.pages !== undefined,
    },
    tensors: { q, keys: view.keys, values: view.values, index: view.index, counts: view.counts, extra: bound, chosen: values.pages, parts },
    uniforms: queryValues(own, q, values, { tiles: plan.tiles, bound: bound !== undefined, width: 4 }),
    grid: [plan.tiles * values.splits, view.heads.length, batch],
  });
}
