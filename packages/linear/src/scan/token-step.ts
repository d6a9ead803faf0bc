// One token of a stream: S = decay(S) + k v^T in place, out = q S.
// tile    keyDim x `columns` of a head's state a workgroup, `rows` x 4 of it a lane; slabs of rows are summed in workgroup memory, in order
// bytes   reads and writes every state once, which bounds it; q, k and gates once a column tile, v and out once
// limits  any head dimensions; a lane's part of the state is under way before anything is waited for
// source  Qin et al. 2024 (arXiv 2401.04658), section 3; Yang et al. 2023 (arXiv 2312.06635), eq. 3 (gates)
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, unroll, write } from '@heed/core/~internal';
import { keyDimOf, type ScanTurns } from './sweep.js';
import { lossText, vectorLoad, vectorStore } from './text.js';
import { type TurnForm, turnText } from './turn-text.js';
import { rowWidth } from './views.js';

/** How the step of one token cuts a state. */
export interface TokenStepTile {
  /** Columns (of the value dimension) a workgroup. */
  columns: number;
  /** Rows (of the key dimension) a lane, next to 4 columns. */
  rows: number;
}

/** What decays a state: a constant a head, [heads]; a number a head, [batch, 1, heads]; or one a row, [batch, 1, heads, keyDim]. */
type StepGate = 'constant' | 'head' | 'rows';

interface StepSpec extends TokenStepTile {
  [name: string]: string | number | boolean;
  gate: StepGate;
  keyDim: number;
  valueDim: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  gWidth: number;
  outWidth: number;
  stateWidth: number;
  lengths: boolean;
  /** q and k are turned by the position of the token. */
  turn: TurnForm | 'none';
}

/** Most lanes of a workgroup, and most rows of a lane while a narrower workgroup is to be had. */
const mostLanes = 256;
const mostRows = 16;
/** Workgroups that fill a large GPU. */
const wantedWorkgroups = 512;

/** Tile of a step: the widest columns that still give every part of the device a workgroup. Pure. */
export function tokenStepTile(states: number, { keyDim, valueDim }: { keyDim: number; valueDim: number }): TokenStepTile {
  const tiles = [128, 64, 32, 16].map((most) => {
    const columns = Math.ceil(valueDim / Math.ceil(valueDim / most) / 4) * 4;
    const slabs = Math.max(1, Math.floor(mostLanes / (columns / 4)));
    return { columns, rows: Math.ceil(keyDim / slabs / 4) * 4 };
  });
  const narrow = tiles.filter(({ rows }) => rows <= mostRows);
  const fills = ({ columns }: TokenStepTile): boolean => states * Math.ceil(valueDim / columns) >= wantedWorkgroups;
  return narrow.find(fills) ?? narrow.at(-1) ?? (tiles.at(-1) as TokenStepTile);
}

const kernel = defineKernel({
  name: 'linear-token-step',
  bindings: {
    q: read<StepSpec>('float', { width: (s) => s.qWidth }),
    k: read<StepSpec>('float', { width: (s) => s.kWidth }),
    v: read<StepSpec>('float', { width: (s) => s.vWidth }),
    g: read<StepSpec>('f32', { width: (s) => s.gWidth }),
    theta: read<StepSpec>('f32', { when: (s) => s.turn !== 'none' }),
    lengths: read<StepSpec>('i32', { when: (s) => s.lengths }),
    state: readWrite<StepSpec>('f32', { width: (s) => s.stateWidth }),
    out: write<StepSpec>('float', { width: (s) => s.outWidth }),
  },
  uniforms: {
    qBatch: 'u32',
    qHead: 'u32',
    kBatch: 'u32',
    kHead: 'u32',
    vBatch: 'u32',
    vHead: 'u32',
    gBatch: 'u32',
    gHead: 'u32',
    outBatch: 'u32',
    outHead: 'u32',
    heads: 'u32',
    columnTiles: 'u32',
    workgroups: 'u32',
    tokensBefore: 'i32',
    position: 'u32',
    queryScale: 'f32',
    keyScale: 'f32',
  },
  wgsl: stepText,
});

/**
 * `turned_q` and `turned_k`, four elements from d on: the rows are loaded where they are made of, and cosines and sines are at hand
 * in workgroup memory.
 */
function turnedLoads(form: TurnForm, keyDim: number): string {
  const headDim = form === 'concat' ? keyDim / 2 : keyDim;
  const four = (name: string, at: string, count: number): string =>
    `vec${count}f(${['', ' + 1u', ' + 2u', ' + 3u']
      .slice(0, count)
      .map((e) => `${name}[${at}${e}]`)
      .join(', ')})`;
  const load = (name: string): string =>
    form === 'concat'
      ? `
    fn turned_${name}(base: u32, d: u32) -> vec4f {
      let channel = d % ${headDim}u;
      let way = select(${four('sines', 'channel', 4)}, ${four('cosines', 'channel', 4)}, d < ${headDim}u);
      return select(vec4f(), vector_${name}(base, channel) * way, d < ${keyDim}u);
    }`
      : `
    fn turned_${name}(base: u32, d: u32) -> vec4f {
      let x = vector_${name}(base, d);
      let pair = min(d, ${keyDim - 4}u) / 2u;
      let cosine = ${four('cosines', 'pair', 2)};
      let sine = ${four('sines', 'pair', 2)};
      return x * cosine.xxyy + x.yxwz * vec4f(-sine.x, sine.x, -sine.y, sine.y);
    }`;
  const size = Math.ceil(anglesOf(keyDim) / 4) * 4;
  return `
    ${turnText('turnOne')}
    var<workgroup> cosines: array<f32, ${size}>;
    var<workgroup> sines: array<f32, ${size}>;
    ${load('q')}
    ${load('k')}`;
}

/** Angles of a head, whose keys are `keyDim` wide once they are turned. */
const anglesOf = (keyDim: number): number => keyDim / 2;

function stepText(s: StepSpec): string {
  const groups = s.columns / 4;
  const slabs = Math.ceil(s.keyDim / s.rows);
  const lanes = groups * slabs;
  const vectors = s.rows / 4;
  // rows past the last read the last one's vectors and are not stored
  const whole = slabs * s.rows === s.keyDim;
  const stateAt = (r: number): string => `stateBase + ${whole ? `${r}u` : `min(${r}u, lastRow)`} * ${s.valueDim}u, d`;
  const each = (text: (r: number) => string): string => unroll(s.rows, text);
  const of = (name: string, r: number): string => `${name}${Math.floor(r / 4)}.${'xyzw'[r % 4]}`;
  const base = (name: string): string => `batch * uniforms.${name}Batch + head * uniforms.${name}Head`;
  const rowDim = s.turn === 'concat' ? s.keyDim / 2 : s.keyDim;
  const from = s.turn === 'none' ? 'vector' : 'turned';
  const angles = anglesOf(s.keyDim);
  const loss = (r: number): string => (s.gate === 'rows' ? `vec4f(${of('loss', r)})` : 'vec4f(loss)');
  return `
    ${vectorLoad('q', s.qWidth, rowDim)}
    ${vectorLoad('k', s.kWidth, rowDim)}
    ${s.turn === 'none' ? '' : turnedLoads(s.turn, s.keyDim)}
    ${vectorLoad('v', s.vWidth, s.valueDim)}
    ${s.gate === 'rows' ? vectorLoad('g', s.gWidth, s.keyDim) : ''}
    ${vectorLoad('state', s.stateWidth, s.valueDim)}
    ${vectorStore('state', s.stateWidth, s.valueDim)}
    ${vectorStore('out', s.outWidth, s.valueDim)}
    ${lossText}
    ${slabs > 1 ? `var<workgroup> partial: array<vec4f, ${lanes}>;` : ''}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let pair = index / uniforms.columnTiles;
      let head = pair % uniforms.heads;
      let batch = pair / uniforms.heads;
      let column = lane % ${groups}u;
      let slab = lane / ${groups}u;
      let firstRow = slab * ${s.rows}u;
      let d = index % uniforms.columnTiles * ${s.columns}u + column * 4u;
      let stateBase = (pair * ${s.keyDim}u + firstRow) * ${s.valueDim}u;
      ${whole ? '' : `let lastRow = ${s.keyDim - 1}u - firstRow;`}
      ${each((r) => `var s${r} = vector_state(${stateAt(r)});`)}
      ${
        s.turn === 'none'
          ? ''
          : `for (var angle = lane; angle < ${angles}u; angle += ${lanes}u) {
        let way = turnOne(load_theta(${s.turn === 'concat' ? `head * ${angles}u + ` : ''}angle), uniforms.position);
        cosines[angle] = way.cosine;
        sines[angle] = way.sine;
      }
      workgroupBarrier();`
      }
      ${unroll(vectors, (i) => `let key${i} = ${from}_k(${base('k')}, firstRow + ${4 * i}u) * uniforms.keyScale; let query${i} = ${from}_q(${base('q')}, firstRow + ${4 * i}u) * uniforms.queryScale;`)}
      let value = vector_v(${base('v')}, d);
      ${
        s.gate === 'rows'
          ? unroll(vectors, (i) => `let loss${i} = lossOf(vector_g(${base('g')}, firstRow + ${4 * i}u));`)
          : `let loss = lossOf(vec4f(load_g(${base('g')}))).x;`
      }
      ${s.lengths ? `if (load_lengths(batch) <= uniforms.tokensBefore) { if (slab == 0u) { vectorTo_out(${base('out')}, d, vec4f()); } return; }` : ''}
      var sum = vec4f();
      ${each((r) => `s${r} = fma(${loss(r)}, s${r}, s${r}); s${r} = fma(vec4f(${of('key', r)}), value, s${r}); sum = fma(vec4f(${of('query', r)}), s${r}, sum);`)}
      ${each((r) => `${whole ? '' : `if (${r}u <= lastRow) `}{ vectorTo_state(${stateAt(r)}, s${r}); }`)}
      ${
        slabs > 1
          ? `partial[lane] = sum;
      workgroupBarrier();
      if (slab > 0u) { return; }
      // a bound that compilers cannot see: some unroll the sum over slabs and take seconds for it
      let slabs = min(${slabs}u, ${slabs - 1}u + groups.x);
      for (var other = 1u; other < slabs; other++) { sum += partial[other * ${groups}u + column]; }`
          : ''
      }
      vectorTo_out(${base('out')}, d, sum);
    }`;
}

/** One token of a scan whose state is updated in place. */
export interface TokenStep {
  /** [batch, 1, heads, keyDim]; v [batch, 1, heads, valueDim]; views are fine. */
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Log-decay: f32 [heads], or a gate [batch, 1, heads] or [batch, 1, heads, keyDim]. */
  gate: Tensor;
  /** Valid tokens a batch entry, i32 [batch]; entries at their end leave the state alone and give zeros. */
  lengths?: Tensor | undefined;
  /** Tokens before this one that `lengths` counts, too. Default 0. */
  tokensBefore?: number | undefined;
  /** Default 1. */
  queryScale?: number | undefined;
  keyScale?: number | undefined;
  /** q and k are turned by the position `offset`; only for rows of whole fours. */
  turns?: ScanTurns | undefined;
}

/**
 * Records the step of one token.
 * @param state contiguous f32 [batch, heads, keyDim, valueDim]
 * @param out [batch, 1, heads, valueDim]
 */
export function runTokenStep(step: TokenStep, state: Tensor, out: Tensor): void {
  const { q, k, v, gate, lengths, turns } = step;
  const [batch, , heads] = k.shape as [number, number, number];
  const keyDim = keyDimOf(step);
  const valueDim = v.dim(3);
  const tile = tokenStepTile(batch * heads, { keyDim, valueDim });
  const form: StepGate = gate.rank === 1 ? 'constant' : gate.rank === 3 ? 'head' : 'rows';
  const columnTiles = Math.ceil(valueDim / tile.columns);
  const workgroups = columnTiles * heads * batch;
  const at = (x: Tensor, axis: number): number => x.strides[axis] ?? 0;
  kernel.run(k.device, {
    spec: {
      columns: tile.columns,
      rows: tile.rows,
      gate: form,
      keyDim,
      valueDim,
      qWidth: rowWidth(q),
      kWidth: rowWidth(k),
      vWidth: rowWidth(v),
      gWidth: form === 'rows' ? rowWidth(gate) : 1,
      outWidth: rowWidth(out),
      stateWidth: valueDim % 4 === 0 ? 4 : 1,
      lengths: lengths !== undefined,
      turn: turns?.form ?? 'none',
    },
    tensors: { q, k, v, g: gate, theta: turns?.theta, lengths, state, out },
    uniforms: {
      qBatch: at(q, 0),
      qHead: at(q, 2),
      kBatch: at(k, 0),
      kHead: at(k, 2),
      vBatch: at(v, 0),
      vHead: at(v, 2),
      gBatch: form === 'constant' ? 0 : at(gate, 0),
      gHead: form === 'constant' ? at(gate, 0) : at(gate, 2),
      outBatch: at(out, 0),
      outHead: at(out, 2),
      heads,
      columnTiles,
      workgroups,
      tokensBefore: step.tokensBefore ?? 0,
      position: turns?.offset ?? 0,
      queryScale: step.queryScale ?? 1,
      keyScale: step.keyScale ?? 1,
    },
    grid: [workgroups],
  });
}
