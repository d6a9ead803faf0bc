// The steps of the attention kernels on fragments over streamed tiles, and the hiding of pairs that a tile's mask excludes.
import type { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import { bound, laneQuad, type MatrixSpec, padded, type Region, Staging } from './matrix-memory.js';
import type { ScoreSpec } from './common.js';
import { ownedRow, type Scratch } from './matrix-scratch.js';
import type { Walk } from './matrix-walks.js';

/** Streamed rows of one tensor: through registers, so that they are loaded while the tile before is computed, or straight to memory. */
export interface Stream {
  /** Declares the registers. */
  declare(): string;
  /** Loads rows `first` and following below `end`; zeros beyond. */
  fetch(first: string, end: string): string;
  /** Writes them to workgroup memory; no barrier. */
  put(first: string, end: string): string;
}

/** Text that declares registers, loads the next tile's share into them, and writes it where the kernel reads it. */
export interface Extra {
  declare: string;
  fetch: string;
  put: string;
}

/**
 * Text that computes each tile of a walk, from `start` to `stop`; the next one is loaded meanwhile. Tiles that are seen whole run a
 * loop of their own without masking: as branches of one loop, the two bodies cost each other registers (a sixth of the time).
 * Workgroup memory may be in use before: the text begins with a barrier.
 */
export function steps(
  walk: Walk,
  streams: readonly Stream[],
  names: {
    start: string;
    stop: string;
    /** One body for all tiles: texts of software devices stay short, and some masks are tested pair by pair in every tile. */
    one: boolean;
    /** Whether this subgroup has anything to do with the tile; all lanes run the body where it is absent. */
    sees: string | undefined;
    compute: (masked: boolean) => string;
    /** What else is staged. */
    extras?: readonly Extra[];
  },
): string {
  const { start, stop, sees, compute, extras = [], one } = names;
  const all = (part: keyof Extra): string => extras.map((extra) => extra[part]).join('\n');
  const fetch = `${streams.map((stream) => stream.fetch('nextStart', 'nextStop')).join('\n')} ${all('fetch')}`;
  const put = `${streams.map((stream) => stream.put('nextStart', 'nextStop')).join('\n')} ${all('put')}`;
  const step = (masked: boolean, body: string): string => `
      let ${start} = nextStart;
      let ${stop} = nextStop;
      let masked = ${one ? 'nextMasked' : masked};
      let partialTile = nextBits;
      ${walk.advance}
      ${fetch}
      ${body}
      workgroupBarrier();
      ${put}
      workgroupBarrier();`;
  const guarded = sees === undefined ? compute(true) : `if (${sees}) { ${compute(true)} }`;
  return `
    ${streams.map((stream) => stream.declare()).join(' ')} ${all('declare')}
    ${walk.declare}
    ${walk.advance}
    ${fetch}
    workgroupBarrier();
    ${put}
    workgroupBarrier();
    while (found) {
      ${one ? step(true, guarded) : `while (found && !nextMasked) { ${step(false, compute(false))} } if (found) { ${step(true, guarded)} }`}
    }`;
}

/** Whether every tile is tested pair by pair. */
export function testsEveryTile(spec: ScoreSpec): boolean {
  return spec.mask !== '' && spec.list !== 'runs';
}

/** Hides a block's scores `x<block>_<unit>` of pairs whose bits are not set: owned rows against the streamed ones from `first` on. */
function hideByBits(spec: MatrixSpec, t: Scratch, block: number, first: number): string {
  const row = `(partialTile * ${spec.rows}u + ${ownedRow(spec, block)} + row) * ${spec.bits}u + ${first >> 5}u`;
  const word = bitsAhead(spec) ? `bits${block}_${first >> 5}` : `arena[base_arena() + uniforms.bitsAt + ${row}]`;
  return `{ let bits = ${word} >> (${first & 31}u + 4u * pair);
      ${t.units.map((u) => hide(block, u, bitsOf(8 * u))).join(' ')} }`;
}

/** Hides a block's scores `x<block>_<unit>` of pairs that are not seen: rows of queries against the keys from `keyStart + first` on. */
export function hideKeys(spec: MatrixSpec, t: Scratch, block: number, chunk: number): string {
  if (spec.bits > 0) return hideByBits(spec, t, block, chunk);
  const first = `(keyStart + ${chunk}u)`;
  if (spec.mask !== '') return hideEach(spec, t, block, `seen(b, h, place${block}, ${first} + column, keyStop)`);
  // closed form: the last and the first visible key, and the first key behind the leading ones, counted from this lane's first column
  return `{ let zero = i32(${first} + 4u * pair);
    let last = vec4i(min(place${block} + uniforms.right, i32(keyStop) - 1) - zero);
    let first = vec4i(place${block} - uniforms.left - zero);
    let leading = vec4i(i32(uniforms.prefix) - zero);
    ${t.units.map((u) => `{ let c = ${columnsOf(u)}; ${hide(block, u, '(c <= last) & ((c >= first) | (c < leading))')} }`).join('\n')} }`;
}

/** Whether the bits of partial tiles are loaded with the tile: large tiles have no registers left for them. */
function bitsAhead(spec: MatrixSpec): boolean {
  return spec.bits > 0 && spec.rows <= 128;
}

/**
 * Bits of the partial tile that is computed, `bits<block>_<word>`, of this lane's rows, loaded with the tile. `any` says whether a row
 * of the subgroup takes part in a pair: windows over tokens of a plane leave many of a workgroup's tiles to some of its subgroups.
 */
export function keyBits(spec: MatrixSpec, t: Scratch): { extra: Extra; any: string } | undefined {
  if (!bitsAhead(spec)) return undefined;
  const names = t.blocks.flatMap((m) =>
    range(spec.bits).map((w) => ({
      name: `${m}_${w}`,
      at: `(nextBits * ${spec.rows}u + ${ownedRow(spec, m)} + row) * ${spec.bits}u + ${w}u`,
    })),
  );
  return {
    extra: {
      declare: names.map(({ name }) => `var nextBits${name} = 0u; var bits${name} = 0u;`).join(' '),
      fetch: `if (found && nextMasked) { ${names.map(({ name, at }) => `nextBits${name} = arena[base_arena() + uniforms.bitsAt + ${at}];`).join(' ')} }`,
      put: names.map(({ name }) => `bits${name} = nextBits${name};`).join(' '),
    },
    any: `(!masked || subgroupAny((${names.map(({ name }) => `bits${name}`).join(' | ')}) != 0u))`,
  };
}

/** A column behind those of a tile, and a position behind every sequence, both far enough from the ends of i32 to be added to. */
const behindTile = 2 ** 20;
const behindAll = 2 ** 30 - 1;

/** As `hideKeys`: rows of keys against the queries from `rowStart + first` on. */
export function hideQueries(spec: MatrixSpec, t: Scratch, block: number, chunk: number): string {
  if (spec.bits > 0) return hideByBits(spec, t, block, chunk);
  const first = `(rowStart + ${chunk}u)`;
  if (spec.mask !== '') return hideEach(spec, t, block, `seen(b, h, i32(${first} + column) + queryOffset, keyAt${block}, keyStop)`);
  return `{ let zero = i32(${first} + 4u * pair);
    let dead = keyAt${block} >= keyStop;
    let first = vec4i(select(i32(keyAt${block}) - uniforms.right - queryOffset - zero, ${behindTile}, dead));
    let reach = select(i32(keyAt${block}) + uniforms.left - queryOffset, ${behindAll}, keyAt${block} < uniforms.prefix);
    let last = vec4i(min(reach, i32(rowEnd) - 1) - zero);
    ${t.units.map((u) => `{ let c = ${columnsOf(u)}; ${hide(block, u, '(c >= first) & (c <= last)')} }`).join('\n')} }`;
}

function columnsOf(unit: number): string {
  return `vec4i(${range(4)
    .map((e) => 8 * unit + e)
    .join(', ')})`;
}

function hide(block: number, unit: number, visible: string): string {
  return `x${block}_${unit} = select(vec4f(uniforms.hidden), x${block}_${unit}, ${visible});`;
}

/** Four bits of `bits` from `shift` on, as a condition. */
function bitsOf(shift: number): string {
  return `(vec4u(bits >> ${shift}u) & vec4u(1u, 2u, 4u, 8u)) != vec4u()`;
}

function hideEach(spec: MatrixSpec, t: Scratch, block: number, seen: string): string {
  const four = (unit: number): string => hide(block, unit, bitsOf(4 * unit));
  return `{ var bits = 0u;
    for (var e = 0u; e < ${bound(spec, t.units.length * 4)}; e++) {
      let column = 4u * (${laneQuad('(e / 4u)')}) + e % 4u;
      if (${seen}) { bits |= 1u << e; }
    }
    ${t.units.map(four).join(' ')} }`;
}

/** Whether a row of this subgroup sees a key of the tile. */
export function seesKeys(spec: MatrixSpec): string {
  const first = `rowStart + ${ownedRow(spec, 0)}`;
  if (spec.list === 'runs') return `${first} < rowEnd`;
  const place = `(i32(${first}) + queryOffset)`;
  return `${first} < rowEnd && i32(keyStart) <= ${place} + ${16 * spec.blocks - 1} + uniforms.right && (i32(keyStart) + ${spec.columns} > ${place} - uniforms.left || keyStart < uniforms.prefix)`;
}

/** Whether a key of this subgroup is seen by a query of the tile. */
export function seenByQueries(spec: MatrixSpec): string {
  const first = `(keyStart + ${ownedRow(spec, 0)})`;
  if (spec.list === 'runs') return `${first} < keyStop`;
  return `${first} < keyStop && i32(${first}) <= i32(rowStart) + ${spec.columns - 1} + queryOffset + uniforms.right && (i32(${first}) + ${16 * spec.blocks - 1} >= i32(rowStart) + queryOffset - uniforms.left || ${first} < uniforms.prefix)`;
}

/** Rows that the workgroup owns, of one tensor, as fragments `<name><block>_<k>`. */
export interface OwnedRows {
  name: string;
  /** The region of streamed rows that they pass through, and under emulation the region that holds them. */
  through: Region;
  own: Region | undefined;
  binding: string;
  base: string;
  dim: number;
}

/**
 * Loads owned rows from `first` on as fragments: in registers, staged through regions of streamed rows, all loads ahead of the first
 * barrier; the emulation reads them in regions of their own. Begins and ends without a barrier.
 */
export function ownedFragments(
  f: Fragments,
  spec: MatrixSpec,
  place: { first: string; end: string },
  tensors: readonly OwnedRows[],
): string {
  const { columns, blocks, subgroups } = spec;
  const { first, end } = place;
  const blocksAPart = columns / 16;
  const parts = range(Math.ceil((subgroups * blocks) / blocksAPart));
  const start = (i: number): string => `${first} + ${i * columns}u`;
  const each = tensors.map((rows) => {
    const { name, through, dim } = rows;
    const depths = range(padded(dim) / f.K);
    const stage = parts.map((i) => new Staging(f, through, spec, { ...rows, rows: columns, registers: `${name}Part${i}_` }));
    const mine = (i: number, m: number): string => `
      if ((subgroup * ${blocks}u + ${m}u) / ${blocksAPart}u == ${i}u) {
        let within = (subgroup * ${blocks}u + ${m}u) % ${blocksAPart}u * 16u;
        ${depths.map((k) => f.setLeft(`${name}${m}_${k}`, through.name, through.at('within', `${k * f.K}u`), through.rowStride)).join(' ')} }`;
    return {
      empty: range(blocks)
        .flatMap((m) => depths.map((k) => f.emptyLeft(`${name}${m}_${k}`)))
        .join(' '),
      fetch: parts.map((i) => `${stage[i]?.declare()} ${stage[i]?.fetch(start(i), end)}`).join('\n'),
      put: (i: number) => stage[i]?.put(start(i), end) ?? '',
      load: (i: number) =>
        range(blocks)
          .map((m) => mine(i, m))
          .join('\n'),
    };
  });
  if (!f.hardware)
    return tensors.map((rows) => (rows.own ? new Staging(f, rows.own, spec, { ...rows, rows: spec.rows }).put(first, end) : '')).join('\n');
  const all = (text: (rows: (typeof each)[number]) => string): string => each.map(text).join('\n');
  return `${all((r) => r.empty)} { ${all((r) => r.fetch)}
    ${parts.map((i) => `workgroupBarrier(); ${all((r) => r.put(i))} workgroupBarrier(); ${all((r) => r.load(i))}`).join('\n')} }`;
}
