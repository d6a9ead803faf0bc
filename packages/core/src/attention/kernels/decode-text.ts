// The text of decode kernels: few query rows over many keys, one part of the keys of a KV head a workgroup, all rows of its group together.
// tile    `rows` query rows x `keysAStep` keys for each of lanes / lanesAKey streams; a key's lanes own 8 elements of every row each
// bytes   each key and value once a tile of rows, in loads of 16 bytes; (valueDim + 4) x 4 a row and part
// limits  head dimensions up to 8 lanesAKey; a key's lanes lie inside a subgroup; hidden scores are NEG and weigh 0
// source  flash-decoding (Dao et al. 2023): parts over keys, merged by maxima and sums; online softmax (Milakov, Gimelshein 2018)
import { range } from '../../kernel/modules.js';

export type DecodeTile = {
  /** Query rows of a tile, a power of two, at most lanesAKey. */
  rows: number;
  /** Lanes side by side on one key, a power of two. */
  lanesAKey: number;
  /** Keys of a stream that are in flight together. */
  keysAStep: number;
  /** Lanes of a workgroup. */
  lanes: number;
};

export type DecodeParts = DecodeTile & {
  valueDim: number;
  /** Statements at the head of each step, which begins with key number `step`. Default none. */
  before?: string;
  /**
   * Statements that tell, for key number `n` of the part (it may lie at or past `end`), what `key` and `value` need. `u` names the
   * variables, which every lane must have: `place<u>`.
   */
  place(u: number): string;
  /** `vec4f` expressions: elements 8 c .. 8 c + 3 and the next four, of what `fetch` left in variables. */
  fetch(u: number): string;
  /**
   * Keys of the step behind are under way while this one is computed: variables for key `u`, which `fetch` reads, and their assignments
   * for key number `n` of the step that begins with key number `first`. Default: keys are fetched with their values.
   */
  ahead?: { declare(u: number): string; fetch(u: number, n: string, first: string): string };
  key(u: number, half: 0 | 1): string;
  value(u: number, half: 0 | 1): string;
  /** Expression of the logit in base 2 of a raw score `s`, for this lane's row and key `u`. */
  logit(s: string, u: number): string;
  /** Condition under which this lane's row sees key `u`. */
  seen(u: number): string;
  /** Uniform condition under which every row sees every key of the step; such steps ask `seen` of none. Default: never. */
  whole?: string;
  /** Maximum and sum that a row of the first stream begins with; default NEG and 0. */
  start?: { top: string; total: string };
};

/** Workgroup memory of the text. */
export function decodeVariables({ rows, lanesAKey, lanes }: DecodeTile): string {
  const states = Math.max(4, (lanes / lanesAKey) * rows);
  return `
    var<workgroup> tops: array<f32, ${states}>;
    var<workgroup> totals: array<f32, ${states}>;
    var<workgroup> sums: array<vec4f, ${2 * lanes}>;`;
}

/** Bytes of it. */
export function decodeBytes({ rows, lanesAKey, lanes }: DecodeTile): number {
  return 8 * Math.max(4, (lanes / lanesAKey) * rows) + 32 * lanes;
}

/** Where a lane stands: `c` (its eight elements), `stream`, `ownRow` (of the tile, the one whose scores it holds), `firstLane` (of its key). */
export function decodeLane({ rows, lanesAKey }: DecodeTile): string {
  return `
    let c = lane & ${lanesAKey - 1}u;
    let stream = lane / ${lanesAKey}u;
    let ownRow = c / ${lanesAKey / rows}u;
    let firstLane = subgroupLane & ${~(lanesAKey - 1) >>> 0}u;`;
}

/**
 * The walk over keys begin .. end - 1 and the parts that it writes. Reads `begin`, `end` (uniform), what `decodeLane` declares, and
 * `q<r>a`, `q<r>b`: this lane's eight elements of row r. `store(r, item, value)` stores a vec4f of row r's part, `item` counted in
 * vec4: the sum of values, then (maximum in base 2, total weight, 0, 0).
 */
export function decodeWalk(parts: DecodeParts, store: (r: number, item: string, value: string) => string): string {
  const { rows, lanesAKey, keysAStep, lanes, valueDim } = parts;
  const streams = lanes / lanesAKey;
  const steps = range(keysAStep);
  const all = range(rows);
  const start = parts.start ?? { top: 'NEG', total: '0.0' };
  const quads = Math.ceil(valueDim / 4);
  const { ahead } = parts;
  const stepKeys = streams * keysAStep;
  const fetchAhead = (first: string): string =>
    ahead ? steps.map((u) => ahead.fetch(u, `(${first} + ${u * streams}u + stream)`, first)).join('\n') : '';
  return `
    ${ahead ? `${steps.map((u) => ahead.declare(u)).join(' ')} ${fetchAhead('begin')}` : ''}
    ${all.map((r) => `var o${r}a = vec4f(); var o${r}b = vec4f();`).join(' ')}
    var top = ${start.top};
    var total = ${start.total};
    for (var step = begin; step < end; step += ${stepKeys}u) {
      ${steps.map((u) => `let n${u} = step + ${u * streams}u + stream;`).join(' ')}
      ${parts.before ?? ''}
      ${steps.map((u) => parts.place(u)).join('\n')}
      ${steps.map((u) => parts.fetch(u)).join('\n')}
      ${ahead ? `let behind = step + ${stepKeys}u; if (behind < end) { ${fetchAhead('behind')} }` : ''}
      ${steps.map((u) => oneScore(parts, u)).join('\n')}
      ${parts.whole === undefined ? '{' : `if (!(${parts.whole})) {`} ${steps.map((u) => `s${u} = select(NEG, s${u}, ${parts.seen(u)});`).join(' ')} }
      // the reference follows the maximum only where it grew by more than 2^8: sums of weights up to that stay exact enough in f32
      let widest = ${steps.map((u) => `s${u}`).reduce((text, s) => `max(${text}, ${s})`)};
      let next = select(top, widest, widest > top + 8.0);
      let shrink = exp2(top - next);
      top = next;
      ${steps.map((u) => `let w${u} = select(exp2(s${u} - next), 0.0, s${u} < 0.5 * NEG);`).join(' ')}
      total = total * shrink + ${steps.map((u) => `w${u}`).join(' + ')};
      ${all.map((r) => `let shrink${r} = ${fromRow(parts, 'shrink', r)};`).join(' ')}
      if (${all.map((r) => `shrink${r} != 1.0`).join(' || ')}) { ${all.map((r) => `o${r}a *= shrink${r}; o${r}b *= shrink${r};`).join(' ')} }
      ${steps
        .map(
          (u) => `{
        let va = ${parts.value(u, 0)}; let vb = ${parts.value(u, 1)};
        ${all.map((r) => `{ let w = ${fromRow(parts, `w${u}`, r)}; o${r}a += w * va; o${r}b += w * vb; }`).join('\n')}
      }`,
        )
        .join('\n')}
    }
    if (c % ${lanesAKey / rows}u == 0u) { tops[stream * ${rows}u + ownRow] = top; totals[stream * ${rows}u + ownRow] = total; }
    ${all
      .map(
        (r) => `
    workgroupBarrier();
    var top${r} = NEG;
    for (var g = 0u; g < ${streams}u; g++) { top${r} = max(top${r}, tops[g * ${rows}u + ${r}u]); }
    { let share = exp2(tops[stream * ${rows}u + ${r}u] - top${r}); sums[2u * lane] = o${r}a * share; sums[2u * lane + 1u] = o${r}b * share; }
    workgroupBarrier();
    if (lane < ${quads}u) {
      var sum = vec4f();
      for (var g = 0u; g < ${streams}u; g++) { sum += sums[g * ${2 * lanesAKey}u + lane]; }
      ${store(r, 'lane', 'sum')}
    }
    if (lane == 0u) {
      var weight = 0.0;
      for (var g = 0u; g < ${streams}u; g++) { weight += totals[g * ${rows}u + ${r}u] * exp2(tops[g * ${rows}u + ${r}u] - top${r}); }
      ${store(r, `${quads}u`, `vec4f(top${r}, weight, 0.0, 0.0)`)}
    }`,
      )
      .join('\n')}`;
}

/** A value that the lanes of row r of this key hold. */
function fromRow({ rows, lanesAKey }: DecodeTile, value: string, r: number): string {
  return lanesAKey === 1 ? value : `subgroupShuffle(${value}, firstLane + ${(r * lanesAKey) / rows}u)`;
}

/** Score `s<u>` of this lane's row: products of all rows are summed over the key's lanes, halving rows and lanes together. */
function oneScore(parts: DecodeParts, u: number): string {
  const { rows, lanesAKey } = parts;
  const lines = [`let ka = ${parts.key(u, 0)}; let kb = ${parts.key(u, 1)};`];
  let names = range(rows).map((r) => `d${r}`);
  for (const r of range(rows)) lines.push(`let d${r} = ${dotText(`q${r}`)};`);
  let step = lanesAKey / 2;
  for (; names.length > 1; step /= 2) {
    const half = names.length / 2;
    const folded = range(half).map((i) => `f${step}_${i}`);
    lines.push(`let upper${step} = (c & ${step}u) != 0u;`);
    folded.forEach((name, i) => {
      const [low, high] = [names[i] ?? '', names[i + half] ?? ''];
      lines.push(
        `let ${name} = select(${low}, ${high}, upper${step}) + subgroupShuffleXor(select(${high}, ${low}, upper${step}), ${step}u);`,
      );
    });
    names = folded;
  }
  let sum = names[0] ?? '0.0';
  for (; step >= 1; step /= 2) {
    lines.push(`let x${step} = ${sum} + subgroupShuffleXor(${sum}, ${step}u);`);
    sum = `x${step}`;
  }
  return `
      var s${u} = NEG;
      {
        ${lines.join('\n        ')}
        s${u} = ${parts.logit(sum, u)};
      }`;
}

/** Eight products in one chain. */
function dotText(q: string): string {
  return ['x', 'y', 'z', 'w'].reduceRight(
    (rest, e) => `fma(${q}a.${e}, ka.${e}, ${rest})`,
    ['y', 'z', 'w'].reduceRight((rest, e) => `fma(${q}b.${e}, kb.${e}, ${rest})`, `${q}b.x * kb.x`),
  );
}

/** Converts eight packed halves: the first or second vec4f of a `vec4u`. */
export function halvesOf(word: string, half: 0 | 1): string {
  const [a, b] = half === 0 ? ['x', 'y'] : ['z', 'w'];
  return `vec4f(unpack2x16float(${word}.${a}), unpack2x16float(${word}.${b}))`;
}
