import { range, unroll } from '@heed/core/~internal';
import type { BlocksSpec } from './gated-blocks.js';

// The step of `linear-gated-blocks`: `tile` tokens in blocks of four. Between token m - 1 and token m of a block the state decays by
// y_m (m = 1, 2, 3), before token 0 by `pre`, behind token 3 by `post`; forward pre is the gate of token 0 and post is 1, in reverse pre is
// 1 and post the gate of token 3, because there a token's own gate decays what leaves it.
//   out_i = pre y_1 .. y_i (q_i S) + sum over j <= i of (q_i y_(j+1) .. y_i k_j) v_j
//   S     = pre y_1 y_2 y_3 post S + sum over j of (y_(j+1) .. y_3 post k_j) v_j^T

/** y1, y2, y3, pre and post of the four rates `x0` .. `x3`, which are in base 2. */
function factors(reverse: boolean): string {
  const between = range(3).map((m) => `let y${m + 1} = exp2(x${reverse ? m : m + 1});`);
  return `${between.join(' ')} let ${reverse ? 'post = exp2(x3)' : 'pre = exp2(x0)'};`;
}

export function blocksBody(s: BlocksSpec): { variables: string; step: string } {
  const groups = s.columns / 4;
  const lanes = groups * s.slabs;
  const vectors = s.rows / 4;
  const keyVectors = s.slabs * vectors;
  const outputs = s.mode === 'outputs';
  const rows = s.side === 'rows';
  const gates = s.gate === 'head' ? 1 : rows ? keyVectors : groups;
  const array = (name: string, size: number): string => `var<workgroup> ${name}: array<vec4f, ${size}>;`;
  const variables = [
    ...(outputs ? [array('staged_q', s.tile * keyVectors), array('parts', s.tile * s.parts), array('scores', s.tile)] : []),
    array('staged_k', s.tile * keyVectors),
    array('staged_v', s.tile * groups),
    ...(rows ? [] : [array('weighted_v', s.tile * groups)]),
    // rows: rates, then the loss of a block in place of its first; columns: rates, then pre, y1, y2, y3
    array('staged_g', s.tile * gates),
    ...(rows && s.gate !== 'head' ? [] : [array('losses', (s.tile / 4) * (rows ? 1 : groups))]),
  ];
  const stage = (name: string, count: number, load: string): string => `
        for (var e = lane; e < blocks * ${4 * count}u; e += ${lanes}u) {
          let i = e / ${count}u;
          var value = vec4f();
          if (i < tokens) {
            let base = batch * uniforms.${name}Batch + tokenAt(at + i, length) * uniforms.${name}Token + head * uniforms.${name}Head;
            let d = (e % ${count}u) * 4u;
            value = ${load};
          }
          staged_${name}[e] = value;
        }`;
  const gateLoad = s.gate === 'head' ? 'rate(vec4f(load_g(base)))' : `rate(vector_g(base, ${rows ? 'd' : 'columns + d'}))`;
  const step = `workgroupBarrier();
        ${outputs ? stage('q', keyVectors, 'vector_q(base, d) * uniforms.queryScale') : ''}
        ${stage('k', keyVectors, 'vector_k(base, d) * uniforms.keyScale')}
        ${stage('v', groups, 'vector_v(base, columns + d)')}
        ${stage('g', gates, gateLoad)}
        workgroupBarrier();
        ${keyTasks(s, { lanes, keyVectors, gates })}
        ${rows ? '' : valueTasks(s, { lanes, groups, gates })}
        workgroupBarrier();
        ${
          outputs
            ? `for (var e = lane; e < blocks * 4u; e += ${lanes}u) {
          var sum = vec4f();
          for (var p = 0u; p < ${s.parts}u * one; p++) { sum += parts[e * ${s.parts}u + p]; }
          scores[e] = sum;
        }
        workgroupBarrier();`
            : ''
        }
        for (var n = 0u; n < blocks; n++) {
          ${unroll(4, (j) => `let v${j} = ${rows ? 'staged_v' : 'weighted_v'}[(4u * n + ${j}u) * ${groups}u + column];`, ' ')}
          ${!rows ? `let loss = losses[n * ${groups}u + column];` : s.gate === 'head' ? 'let loss = losses[n];' : ''}
          ${outputs ? unroll(4, (i) => `var sum${i} = vec4f();`, ' ') : ''}
          ${unroll(vectors, (r) => blockRows(s, r, { keyVectors, vectors, rows }))}
          ${outputs ? blockOutputs(s, { groups, rows }) : ''}
        }`;
  return { variables: variables.join('\n    '), step };
}

/** Four rows of the state of a lane meet the four tokens of a block. */
function blockRows(
  s: BlocksSpec,
  r: number,
  { keyVectors, vectors, rows }: { keyVectors: number; vectors: number; rows: boolean },
): string {
  const outputs = s.mode === 'outputs';
  const place = (j: number): string => `(4u * n + ${j}u) * ${keyVectors}u + slab * ${vectors}u + ${r}u`;
  const wide = rows && s.gate !== 'head';
  const one = (c: number): string => {
    const name = `s${4 * r + c}`;
    const of = 'xyzw'[c];
    const sums = outputs ? unroll(4, (i) => `sum${i} = fma(vec4f(q${i}.${of}), ${name}, sum${i});`, ' ') : '';
    const added = unroll(4, (j) => `${name} = fma(vec4f(k${j}.${of}), v${j}, ${name});`, ' ');
    return `${sums} ${name} = fma(${wide ? `vec4f(loss.${of})` : 'loss'}, ${name}, ${name}); ${added}`;
  };
  return `{
            ${outputs ? unroll(4, (i) => `let q${i} = staged_q[${place(i)}];`, ' ') : ''}
            ${unroll(4, (j) => `let k${j} = staged_k[${place(j)}];`, ' ')}
            ${wide ? `let loss = staged_g[4u * n * ${keyVectors}u + slab * ${vectors}u + ${r}u];` : ''}
            ${unroll(4, one)}
          }`;
}

/**
 * Scores of each block's pairs, a strip of `strip` vectors of channels a task; where gates decay rows, queries and keys take their
 * decays here.
 */
function keyTasks(s: BlocksSpec, { lanes, keyVectors, gates }: { lanes: number; keyVectors: number; gates: number }): string {
  const outputs = s.mode === 'outputs';
  const rows = s.side === 'rows';
  if (!rows && !outputs) return '';
  const wide = rows && s.gate !== 'head';
  const read = (name: string): string => unroll(4, (i) => `let ${name}${i} = staged_${name}[(4u * n + ${i}u) * ${keyVectors}u + c];`, ' ');
  const rates = unroll(4, (i) => `let x${i} = staged_g[4u * n * ${gates}u + ${i}u * ${gates}u${wide ? ' + c' : ''}];`, ' ');
  const pre = s.reverse ? '' : ' * pre';
  const post = s.reverse ? ' * post' : '';
  // scores fall back along the keys: w carries the query through the decays between
  const pairs = rows
    ? range(4).map((i) => {
        const lines = [`var w = q${i};`];
        for (let j = i; j >= 0; j--) lines.push(`a${i}.${'xyzw'[j]} += dot(w, k${j});${j > 0 ? ` w *= y${j};` : ''}`);
        return `{ ${lines.join(' ')} }`;
      })
    : range(4).map((i) =>
        range(i + 1)
          .map((j) => `a${i}.${'xyzw'[j]} += dot(q${i}, k${j});`)
          .join(' '),
      );
  const store = (name: string, i: number, factor: string): string =>
    factor === '' ? '' : `staged_${name}[(4u * n + ${i}u) * ${keyVectors}u + c] = ${name}${i}${factor};`;
  const queries = unroll(
    4,
    (i) =>
      store(
        'q',
        i,
        `${pre}${range(i)
          .map((m) => ` * y${m + 1}`)
          .join('')}`,
      ),
    ' ',
  );
  const keys = unroll(
    4,
    (j) =>
      store(
        'k',
        j,
        `${range(3 - j)
          .map((m) => ` * y${j + 1 + m}`)
          .join('')}${post}`,
      ),
    ' ',
  );
  const loss = 'lossOf(x0 + x1 + x2 + x3)';
  return `for (var e = lane; e < blocks * ${s.parts}u; e += ${lanes}u) {
          let n = e / ${s.parts}u;
          let part = e % ${s.parts}u;
          ${outputs ? unroll(4, (i) => `var a${i} = vec4f();`, ' ') : ''}
          for (var c = part * ${s.strip}u; c < min((part + one) * ${s.strip}u, ${keyVectors}u); c++) {
            ${read('k')}
            ${outputs ? read('q') : ''}
            ${rows ? `${rates} ${factors(s.reverse)}` : ''}
            ${outputs ? pairs.join('\n            ') : ''}
            ${rows ? `${outputs ? queries : ''} ${keys}` : ''}
            ${wide ? `staged_g[4u * n * ${keyVectors}u + c] = ${loss};` : rows ? `if (c == 0u) { losses[n] = ${loss}; }` : ''}
          }
          ${outputs ? unroll(4, (i) => `parts[(4u * n + ${i}u) * ${s.parts}u + part] = a${i};`, ' ') : ''}
        }`;
}

/** Gates of columns: values take the decays behind them; pre, y1, y2, y3 stay for the outputs. */
function valueTasks(s: BlocksSpec, { lanes, groups, gates }: { lanes: number; groups: number; gates: number }): string {
  const wide = s.gate !== 'head';
  const place = (i: number): string => `4u * n * ${gates}u + ${i}u * ${gates}u${wide ? ' + c' : ''}`;
  const post = s.reverse ? ' * post' : '';
  const values = unroll(4, (j) => {
    const factor = `${range(3 - j)
      .map((m) => ` * y${j + 1 + m}`)
      .join('')}${post}`;
    return `weighted_v[(4u * n + ${j}u) * ${groups}u + c] = staged_v[(4u * n + ${j}u) * ${groups}u + c]${factor};`;
  });
  return `for (var e = lane; e < blocks * ${groups}u; e += ${lanes}u) {
          let n = e / ${groups}u;
          let c = e % ${groups}u;
          ${unroll(4, (i) => `let x${i} = staged_g[${place(i)}];`, ' ')}
          ${factors(s.reverse)}
          ${values}
          losses[n * ${groups}u + c] = lossOf(x0 + x1 + x2 + x3);
          ${wide ? `staged_g[${place(0)}] = ${s.reverse ? 'vec4f(1.0)' : 'pre'}; ${unroll(3, (m) => `staged_g[${place(m + 1)}] = y${m + 1};`, ' ')}` : ''}
        }`;
}

/** Sums of the lanes of a column, each lane left with 4 / slabs tokens (one at least); then what the block itself adds. */
function blockOutputs(s: BlocksSpec, { groups, rows }: { groups: number; rows: boolean }): string {
  const lines: string[] = [];
  let left = ['sum0', 'sum1', 'sum2', 'sum3'];
  let token = '0u';
  for (let bit = 1; bit < s.slabs; bit *= 2) {
    if (left.length > 1) {
      const half = left.length / 2;
      const upper = `(slab & ${bit}u) != 0u`;
      const kept = range(half).map((i) => `kept${bit}_${i}`);
      range(half).forEach((i) => {
        const [low, high] = [left[i], left[i + half]];
        lines.push(
          `let kept${bit}_${i} = select(${low}, ${high}, ${upper}) + subgroupShuffleXor(select(${high}, ${low}, ${upper}), ${bit}u);`,
        );
      });
      left = kept;
      token = `${token} + select(0u, ${half}u, ${upper})`;
    } else {
      const next = `all${bit}`;
      lines.push(`let ${next} = ${left[0]} + subgroupShuffleXor(${left[0]}, ${bit}u);`);
      left = [next];
    }
  }
  const writes = s.slabs > 4 ? 'slab < 4u' : 'true';
  const head = s.gate === 'head';
  const rate = (m: number): string => (head ? `staged_g[4u * n + ${m}u]` : `staged_g[(4u * n + ${m}u) * ${groups}u + column]`);
  const stores = left.map((sum, i) => {
    // a gate a head is kept as a rate, gates of columns as factors
    const y = (m: number): string => (head ? `exp2(${rate(s.reverse ? m - 1 : m)})` : rate(m));
    const pre = head ? (s.reverse ? 'vec4f(1.0)' : `exp2(${rate(0)})`) : rate(0);
    const own = rows
      ? `${sum} + a.x * v0 + a.y * v1 + a.z * v2 + a.w * v3`
      : `w0 * ${pre} * ${sum} + a.x * w0 * u0 + a.y * w1 * u1 + a.z * w2 * u2 + a.w * u3`;
    return `{
            let i = token + ${i}u;
            if (4u * n + i < tokens && ${writes}) {
              let a = scores[4u * n + i];
              ${
                rows
                  ? ''
                  : `${unroll(4, (j) => `let u${j} = staged_v[(4u * n + ${j}u) * ${groups}u + column];`, ' ')}
              let w2 = select(vec4f(1.0), ${y(3)}, i >= 3u);
              let w1 = w2 * select(vec4f(1.0), ${y(2)}, i >= 2u);
              let w0 = w1 * select(vec4f(1.0), ${y(1)}, i >= 1u);`
              }
              let t = tokenAt(at + 4u * n + i, length);
              vectorTo_out(batch * uniforms.outBatch + t * uniforms.outToken + head * uniforms.outHead, columns + column * 4u, ${own});
            }
          }`;
  });
  return `${lines.join('\n          ')}
          let token = ${token};
          ${stores.join('\n          ')}`;
}
