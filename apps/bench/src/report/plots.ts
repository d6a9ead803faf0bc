import { drawPlot } from '@heed/lab/chart';
import * as Plot from '@observablehq/plot';
import type { BenchRecord, RecordEntry } from '../record.js';
import { TARGETS } from '../targets.js';
import { figure, percent } from '../terminal.js';
import { SERIES_COLORS } from './style.js';

/** Points of one series, ascending in tokens. */
export interface Series {
  readonly name: string;
  readonly color: string;
  readonly dash: string;
  readonly points: readonly RecordEntry[];
}

/** Series with two points or more, in the order of the record. */
export function seriesOf({ entries }: Pick<BenchRecord, 'entries'>, pass: RecordEntry['pass']): Series[] {
  const found = new Map<string, RecordEntry[]>();
  for (const entry of entries)
    if (entry.series && entry.pass === pass) found.set(entry.series.name, [...(found.get(entry.series.name) ?? []), entry]);
  return [...found]
    .filter(([, points]) => points.length > 1)
    .map(([name, points], i) => ({
      name,
      color: SERIES_COLORS[i % SERIES_COLORS.length] as string,
      dash: ['', '7 3', '2 3'][Math.floor(i / SERIES_COLORS.length) % 3] as string,
      points: [...points].sort((a, b) => (a.series?.tokens ?? 0) - (b.series?.tokens ?? 0)),
    }));
}

/** `64k`, `1M`: thousands of 1,024. */
const count = (n: number): string => (n >= 2 ** 20 ? `${n / 2 ** 20}M` : n >= 2 ** 10 ? `${n / 2 ** 10}k` : String(n));
const tokens = ({ series }: RecordEntry): number => series?.tokens ?? 0;

/** Time against tokens, both logarithmic: a line as steep as the diagonal costs the same a token. */
export function drawCurves(document: Document, series: readonly Series[], value: (entry: RecordEntry) => number, label: string): Element {
  const options: Plot.PlotOptions = {
    width: 620,
    height: 420,
    marginLeft: 64,
    marginBottom: 42,
    grid: true,
    x: {
      type: 'log',
      base: 2,
      label: 'tokens',
      ticks: [...new Set(series.flatMap(({ points }) => points.map(tokens)))],
      tickFormat: count,
    },
    y: { type: 'log', label: null, ticks: 6, tickFormat: (n: number) => figure(n) },
    marks: series.flatMap(({ name, color, dash, points }) => [
      Plot.line(points, { x: tokens, y: value, stroke: color, strokeWidth: 2.25, strokeDasharray: dash }),
      Plot.dot(points, {
        x: tokens,
        y: value,
        fill: color,
        r: 3.5,
        title: (entry: RecordEntry) => `${name}, ${tokens(entry)} tokens: ${figure(value(entry))}`,
      }),
    ]),
  };
  return drawPlot(document, options, label);
}

const barHeight = 22;

/** Share of the floor that each entry reaches. */
export function drawFloors(document: Document, entries: readonly RecordEntry[]): Element {
  const rows = entries
    .filter(({ floorShare }) => floorShare !== undefined)
    .map((entry) => ({ id: entry.id, share: Math.min(1, entry.floorShare ?? 0), text: percent(entry.floorShare) }));
  return drawPlot(
    document,
    {
      width: 900,
      height: 60 + barHeight * rows.length,
      marginLeft: 330,
      marginRight: 50,
      x: { domain: [0, 1], label: 'floor / time', tickFormat: (n: number) => percent(n), grid: true },
      y: { domain: rows.map(({ id }) => id), label: null },
      marks: [
        Plot.barX(rows, { x: 'share', y: 'id', fill: SERIES_COLORS[0] as string }),
        Plot.text(rows, { x: 'share', y: 'id', text: 'text', dx: 4, textAnchor: 'start' }),
      ],
    },
    'Share of the floor that each entry reaches.',
  );
}

/** Ratios to peers, logarithmic; ticks mark what targets ask for at least. */
export function drawRatios(document: Document, entries: readonly RecordEntry[]): Element {
  const rows = entries.flatMap(({ id, ratio, peer }) =>
    ratio === undefined || !peer ? [] : [{ id, ratio, text: `${ratio.toFixed(2)} (${peer.name})` }],
  );
  const wanted = TARGETS.filter(({ id }) => rows.some((row) => row.id === id));
  return drawPlot(
    document,
    {
      width: 900,
      height: 60 + barHeight * rows.length,
      marginLeft: 330,
      marginRight: 190,
      x: { type: 'log', label: 'peer / ours, above 1 we are faster', tickFormat: (n: number) => figure(n), grid: true },
      y: { domain: rows.map(({ id }) => id), label: null },
      marks: [
        Plot.ruleX([1], { stroke: 'var(--ink)' }),
        Plot.dot(rows, { x: 'ratio', y: 'id', fill: SERIES_COLORS[2] as string, r: 5 }),
        Plot.tickX(wanted, { x: 'atLeast', y: 'id', stroke: SERIES_COLORS[7] as string, strokeWidth: 2 }),
        Plot.text(rows, {
          x: 'ratio',
          y: 'id',
          text: 'text',
          dx: 9,
          textAnchor: 'start',
          fill: 'var(--ink)',
          stroke: 'var(--paper)',
          strokeWidth: 4,
        }),
      ],
    },
    'Ratio to the peer of each entry; upright ticks are the targets.',
  );
}
