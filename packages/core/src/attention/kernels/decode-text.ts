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
  /** Rows whose sums meet in workgroup memory at once, a power of two. */
  joined: number;
};

/** Loads of a step that are under way while the one before it is computed, of key number `n`; the step begins with key number `first`. */
interface Ahead {
  /** Variables for key `u`. */
  declare(u: number): string;
  keys(u: number, n: string, first: string): string;
  /** With it, keys and values are loaded into the variables that this step has just used; else `fetch` takes the keys and loads values. */
  values?(u: number, n: string, first: string): string;
}

export type DecodeParts = DecodeTile & {
  valueDim: number;
  /** Statements at the head of each step, which begins with key number `step`. Default none. */
  before?: string;
  /**
   * Statements that tell, for key number `n` of the part (it may lie at or past `end`), what `fetch` needs, and statements that load
   * it. `u` names the variables, which every lane must have: `place<u>`.
   */
  place?(u: number): string;
  fetch?(u: number): string;
  ahead?: Ahead;
  /** `vec4f` expressions: elements 8 c .. 8 c + 3 and the next four, of what was loaded into variables. */
  key(u: number, half: 0 | 1): string;
  value(u: number, half: 0 | 1): string;
  /** Expression of the logit in base 2 of a raw score `s`, for this lane's row and key `u`. */
  logit(s: string, u: number): string;
  /** Condition under which this lane's row sees key `u`. */
  seen(u: number): string;
  /** Uniform condition under which every row sees every key of the step; such steps ask `seen` of none. Default: never. */
  whole?: string;
  /** Expression of the keys from the start of a step to that of the next. Default: steps lie side by side. */
  apart?: string;
  /** Maximum and sum that a row of the first stream begins with; default NEG and 0. */
  start?: { top: string; total: string };
};

/** Workgroup memory of the text. */
export function decodeVariables(tile: DecodeTile): string {
  return `
    // maximum and total weight of a stream's row
    var<workgroup> states: array<vec2f, ${statesOf(tile)}>;
    var<workgroup> sums: array<vec4f, ${2 * tile.lanes * tile.joined}>;`;
}

/** Bytes of it. */
export function decodeBytes(tile: DecodeTile): number {
  return 8 * statesOf(tile) + 32 * tile.lanes * tile.joined;
}

function statesOf({ rows, lanesAKey, lanes }: DecodeTile): number {
  return Math.max(2, (lanes / lanesAKey) * rows);
}

/** Keys that a workgroup walks at once. */
export function decodeStep({ lanesAKey, lanes, keysAStep }: Pick<DecodeTile, 'lanesAKey' | 'lanes' | 'keysAStep'>): number {
  return (lanes / lanesAKey) * keysAStep;
}

/** Where a lane stands: `c` (its eight elements), `stream`, `ownRow` (of the tile, the one whose scores it holds), `firstLane` (of its key). */
export function decodeLane({ rows, lanesAKey }: DecodeTile): string {
  return `
    let c = lane & ${lanesAKey - 1}u;
    let stream = lane / ${lanesAKey}u;
    let ownRow = c / ${lanesAKey / rows}u;
    let firstLane = subgroupLane & ${~(lanesAKey - 1) >>> 0}u;`;
}

/** Statement that stores `value`, a vec4f, as `item` of the part of row `row` of the tile; all three are expressions. */
type StorePart = (row: string, item: string, value: string) => string;

/**
 * The walk over keys begin .. end - 1, or over the steps of them that `apart` leaves, and the parts that it writes. Reads `begin`, `end`
 * (uniform), what `decodeLane` declares, and `q<r>a`, `q<r>b`: this lane's eight elements of row r. Items of a part are vec4f: the sum of
 * values, then (maximum in base 2, total weight, 0, 0).
 */
export function decodeWalk(parts: DecodeParts, store: StorePart): string {
  const { rows, lanesAKey, keysAStep, lanes, joined } = parts;
  const streams = lanes / lanesAKey;
  const steps = range(keysAStep);
  const all = range(rows);
  const start = parts.start ?? { top: 'NEG', total: '0.0' };
  const { ahead } = parts;
  const apart = parts.apart ?? `${decodeStep(parts)}u`;
  const each = (text: (u: number, n: string) => string, first: string): string =>
    `if (${first} < end) { ${steps.map((u) => text(u, `(${first} + ${u * streams}u + stream)`)).join('\n')} }`;
  const keysOf = (first: string): string => (ahead ? each((u, n) => ahead.keys(u, n, first), first) : '');
  const valuesOf = (first: string): string => (ahead?.values ? each((u, n) => ahead.values?.(u, n, first) ?? '', first) : '');
  return `
    ${ahead ? `${steps.map((u) => ahead.declare(u)).join(' ')} ${keysOf('begin')} ${valuesOf('begin')}` : ''}
    ${all.map((r) => `var o${r}a = vec4f(); var o${r}b = vec4f();`).join(' ')}
    var top = ${start.top};
    var total = ${start.total};
    for (var step = begin; step < end; step += ${apart}) {
      ${steps.map((u) => `let n${u} = step + ${u * streams}u + stream;`).join(' ')}
      ${parts.before ?? ''}
      ${steps.map((u) => parts.place?.(u) ?? '').join('\n')}
      ${steps.map((u) => parts.fetch?.(u) ?? '').join('\n')}
      ${ahead ? `let behind = step + ${apart};` : ''}
      ${ahead?.values ? '' : keysOf('behind')}
      ${steps.map((u) => oneScore(parts, u)).join('\n')}
      ${ahead?.values ? keysOf('behind') : ''}
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
      ${valuesOf('behind')}
    }
    if (c % ${lanesAKey / rows}u == 0u) { states[stream * ${rows}u + ownRow] = vec2f(top, total); }
    ${range(rows / joined)
      .map((i) => joinRows(parts, i * joined, store))
      .join('\n    workgroupBarrier();')}`;
}

/** The streams of `joined` rows from `first` on become one part: sums meet as they are, and who stores a quad shrinks and adds it. */
function joinRows({ rows, lanesAKey, lanes, joined, valueDim }: DecodeParts, first: number, store: StorePart): string {
  const quads = Math.ceil(valueDim / 4);
  const streams = lanes / lanesAKey;
  const row = `(${first}u + row)`;
  return `
    ${range(joined)
      .map(
        (j) =>
          `{ let at = (stream * ${joined}u + ${j}u) * ${2 * lanesAKey}u + 2u * c; sums[at] = o${first + j}a; sums[at + 1u] = o${first + j}b; }`,
      )
      .join('\n    ')}
    workgroupBarrier();
    for (var item = lane; item < ${joined * quads}u; item += ${lanes}u) {
      let row = item / ${quads}u;
      let quad = item % ${quads}u;
      var most = NEG;
      for (var g = 0u; g < ${streams}u; g++) { most = max(most, states[g * ${rows}u + ${row}].x); }
      var sum = vec4f();
      var weight = 0.0;
      for (var g = 0u; g < ${streams}u; g++) {
        let state = states[g * ${rows}u + ${row}];
        let share = exp2(state.x - most);
        sum += share * sums[(g * ${joined}u + row) * ${2 * lanesAKey}u + quad];
        weight += share * state.y;
      }
      ${store(row, 'quad', 'sum')}
      if (quad == 0u) { ${store(row, `${quads}u`, 'vec4f(most, weight, 0.0, 0.0)')} }
    }`;
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
