import type { BenchRecord, RecordEntry } from './record.js';

/** A ratio to a peer that an entry of a record has to reach on an H100. */
export interface Target {
  readonly id: string;
  readonly peer: string;
  readonly atLeast: number;
  readonly aim: number;
}

const target = (id: string, peer: string, atLeast: number, aim: number): Target => ({ id, peer, atLeast, aim });

export const TARGETS: readonly Target[] = [
  target('matmul/f16/4096', 'cuBLAS', 0.35, 0.5),
  target('matmul/f32/4096', 'torch f32, no TF32', 0.8, 0.9),
  target('attention/causal/f16/d64/16384/forward', 'SDPA flash', 0.35, 0.5),
  target('attention/causal/f16/d128/16384/forward', 'SDPA flash', 0.35, 0.45),
  target('attention/causal/f16/d64/16384/backward', 'SDPA flash', 0.25, 0.32),
  target('attention/causal/f32/d64/4096/forward', 'SDPA f32', 1, 1.2),
  target('lightning2/f16/d64/65536/forward', 'fla chunk form', 1, 1.8),
  target('lightning2/f16/d128/65536/forward', 'fla chunk form', 1, 1.8),
  target('lightning2/f16/d64/65536/backward', 'fla chunk form', 1, 2),
  target('lightning/f16/d64/65536/forward', 'fla chunk form', 1, 1.5),
  target('window1024/f16/d64/16384/forward', 'FlexAttention', 0.4, 0.6),
  target('fna2d/128x128/13x13/f16/d64/forward', 'FlexAttention', 1.2, 2),
  target('decode/f16/hq32hkv8/d128/131072', 'SDPA decode', 0.9, 1),
  target('decode/f16/hq32hkv8/d128/32768', 'SDPA decode', 1, 1.3),
  target('zeta/65536/forward', 'SDPA d64 causal f16', 2, 4),
];

export type Verdict = 'aim reached' | 'reached' | 'missed' | 'not measured';

/** How a record stands to a target. */
export function verdictOf({ atLeast, aim }: Target, entry: RecordEntry | undefined): Verdict {
  if (entry?.ratio === undefined) return 'not measured';
  return entry.ratio >= aim ? 'aim reached' : entry.ratio >= atLeast ? 'reached' : 'missed';
}

/** A property of a record that is no ratio to a peer. */
export interface Property {
  readonly what: string;
  readonly wanted: string;
  /** Undefined where the record has no figures for it. */
  readonly found: { readonly text: string; readonly holds: boolean } | undefined;
}

const digits = (value: number): string => value.toPrecision(3);
const worstOf = (values: readonly number[]): number | undefined => (values.length === 0 ? undefined : Math.max(...values));
const found = (value: number | undefined, unit: string, most: number): Property['found'] =>
  value === undefined ? undefined : { text: `${digits(value)}${unit}`, holds: value <= most };

/** Points of a curve, ascending in tokens. */
function curve({ entries }: BenchRecord, prefix: string, pass: string): RecordEntry[] {
  const points = entries.filter(({ id, series }) => series && id.startsWith(prefix) && id.endsWith(pass));
  return points.sort((a, b) => (a.series?.tokens ?? 0) - (b.series?.tokens ?? 0));
}

const tokensOf = ({ series }: RecordEntry): number => series?.tokens ?? 0;
const aToken = (entry: RecordEntry): number => entry.ms / tokensOf(entry);

/** Spread of the time a token from `least` tokens on: the most over the least, less 1. */
function spread(points: readonly RecordEntry[], least: number): number | undefined {
  const times = points.filter((point) => tokensOf(point) >= least).map(aToken);
  return times.length < 2 ? undefined : Math.max(...times) / Math.min(...times) - 1;
}

/** The steepest growth of the time when tokens double. */
function steepest(points: readonly RecordEntry[], least: number): number | undefined {
  const large = points.filter((point) => tokensOf(point) >= least);
  const growths = large.slice(1).map((point, i) => {
    const before = large[i] as RecordEntry;
    return (point.ms / before.ms) ** (Math.LN2 / Math.log(tokensOf(point) / tokensOf(before)));
  });
  return worstOf(growths);
}

/** Time of a masked pass over (listed tiles / all tiles) x the time of the full mask. */
export function maskFactors({ entries }: Pick<BenchRecord, 'entries'>): { entry: RecordEntry; factor: number }[] {
  return entries.flatMap((entry) => {
    if (!entry.mask) return [];
    const dense = entries.find(({ id }) => id === entry.id.replace(entry.mask?.name ?? '', 'full'));
    return dense ? [{ entry, factor: entry.ms / (entry.mask.listed * dense.ms) }] : [];
  });
}

/** The techniques beside lightning2 that are a scan with one decay a head. */
const scans = ['lightning', 'transnormer', 'transnormerllm'];

/** Their times over lightning2's, at every length that both were measured at. */
function overLightning2({ entries }: BenchRecord): number[] {
  return scans.flatMap((name) =>
    entries.flatMap(({ id, ms }) => {
      if (!id.startsWith(`${name}/f16/d64/`)) return [];
      const same = entries.find((other) => other.id === id.replace(name, 'lightning2'));
      return same ? [ms / same.ms] : [];
    }),
  );
}

/** What a record shows besides ratios. */
export function propertiesOf(record: BenchRecord): Property[] {
  const { overhead, compiles = [], pool, entries } = record;
  const later = overhead?.chain.microsecondsADispatch.slice(1) ?? [];
  const sparse = maskFactors(record).filter(({ entry }) => entry.pass === 'forward' && (entry.mask?.density ?? 1) < 0.5);
  const scripts = entries.flatMap((entry) =>
    [entry.peer, ...(entry.otherPeers ?? [])].flatMap((peer) => (peer?.clock === 'wall' ? [peer.ms / entry.wallMs] : [])),
  );
  const slowest = scripts.length === 0 ? undefined : Math.min(...scripts);
  return [
    {
      what: 'lightning2: spread of the time a token, 64k to 1M',
      wanted: 'at most 15 %',
      found: found(percentOf(spread(curve(record, 'lightning2/f16/d64/', 'forward'), 65536)), ' %', 15),
    },
    ...scans.map((name) => ({
      what: `${name}: spread of the time a token, 64k to 256k`,
      wanted: 'at most 15 %',
      found: found(percentOf(spread(curve(record, `${name}/f16/d64/`, 'forward'), 65536)), ' %', 15),
    })),
    {
      what: 'scans with one decay a head: time over that of lightning2 at the same state, the worst',
      wanted: 'at most 1.5x',
      found: found(worstOf(overLightning2(record)), 'x', 1.5),
    },
    {
      what: 'window: growth a doubling, from 64k',
      wanted: 'linear: at most 2.2x',
      found: found(steepest(curve(record, 'window1024/', 'forward'), 65536), 'x', 2.2),
    },
    {
      what: 'fna: growth a doubling of tokens, from 64k',
      wanted: 'linear: at most 2.2x',
      found: found(steepest(curve(record, 'fna2d/', 'forward'), 65536), 'x', 2.2),
    },
    {
      what: 'zeta: growth a doubling, from 16k',
      wanted: 'at most 2.3x',
      found: found(steepest(curve(record, 'zeta/', 'forward'), 16384), 'x', 2.3),
    },
    {
      what: 'sparse masks, forward: time over (listed tiles / all tiles) x dense time, the worst',
      wanted: 'at most 1.25',
      found: found(worstOf(sparse.map(({ factor }) => factor)), '', 1.25),
    },
    {
      what: 'JavaScript peers at 4,096 tokens dense, f32: least ratio of wall times',
      wanted: 'at least 10',
      found: slowest === undefined ? undefined : { text: digits(slowest), holds: slowest >= 10 },
    },
    {
      what: 'CPU a dispatch in a chain of 1,000 small ops, from the second pass on, the worst pass',
      wanted: 'at most 8 us',
      found: found(worstOf(later), ' us', 8),
    },
    { what: 'longest compilation of a pipeline', wanted: 'under 2 s', found: found(worstOf(compiles.map(({ ms }) => ms / 1000)), ' s', 2) },
    {
      what: 'bytes that a decode step leaves alive',
      wanted: '0',
      found: overhead?.decode && { text: String(overhead.decode.liveBytesGrown), holds: overhead.decode.liveBytesGrown === 0 },
    },
    {
      what: 'bytes that the pool holds over the live peak',
      wanted: 'at most 25 %',
      found: pool && found(percentOf(Math.max(0, pool.pooledBytes / Math.max(1, pool.peakBytes) - 1)), ' %', 25),
    },
  ];
}

const percentOf = (share: number | undefined): number | undefined => (share === undefined ? undefined : 100 * share);

/** A crossing of two curves against tokens, straight in logarithms between points. */
export interface Crossing {
  readonly faster: string;
  readonly than: string;
  readonly tokens: number;
}

/** Lengths from which one series is faster than another that it was slower than before; series of one pass only. */
export function crossings({ entries }: Pick<BenchRecord, 'entries'>): Crossing[] {
  const series = new Map<string, RecordEntry[]>();
  for (const entry of entries) if (entry.series) series.set(entry.series.name, [...(series.get(entry.series.name) ?? []), entry]);
  for (const points of series.values()) points.sort((a, b) => tokensOf(a) - tokensOf(b));
  const out: Crossing[] = [];
  for (const [faster, own] of series) {
    for (const [than, other] of series) {
      if (faster === than || own[0]?.pass !== other[0]?.pass) continue;
      const tokens = crossing(own, other);
      if (tokens !== undefined) out.push({ faster, than, tokens });
    }
  }
  return out;
}

function crossing(own: readonly RecordEntry[], other: readonly RecordEntry[]): number | undefined {
  const shared = own.flatMap((point) => {
    const against = other.find((candidate) => tokensOf(candidate) === tokensOf(point));
    return against ? [{ x: Math.log(tokensOf(point)), apart: Math.log(point.ms / against.ms) }] : [];
  });
  for (let i = 1; i < shared.length; i++) {
    const [before, after] = [shared[i - 1], shared[i]];
    if (!before || !after || !(before.apart > 0 && after.apart <= 0)) continue;
    return Math.round(Math.exp(before.x + ((after.x - before.x) * before.apart) / (before.apart - after.apart)));
  }
  return undefined;
}
