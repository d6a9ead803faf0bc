import { formatBytes } from '@heed/core';
import { drawPlot, seriesStyle } from '@heed/lab/chart';
import * as Plot from '@observablehq/plot';
import { formatCount, formatDuration } from '../format.js';
import type { DemoRecord, LengthPoint, ModelRecord } from '../record.js';

/** A plot against length: one line a model, both axes logarithmic, so that a power law is a straight line of that slope. */
export interface LengthPlot {
  readonly title: string;
  /** How to read it. */
  readonly reading: string;
  readonly value: (point: LengthPoint) => number;
  readonly format: (value: number) => string;
  /** Ticks stand at round numbers of this base: 2 for bytes. */
  readonly base: 2 | 10;
}

export const LENGTH_PLOTS: readonly LengthPlot[] = [
  {
    title: 'Time to read a text',
    reading: 'Prefill of the whole text. A line that rises as fast as the length costs the same for each token.',
    value: ({ prefillMs }) => prefillMs,
    format: formatDuration,
    base: 10,
  },
  {
    title: 'Time for one more token',
    reading: 'Decoding behind a text of that length. A flat line: the length no longer matters.',
    value: ({ decodeMsPerToken }) => decodeMsPerToken,
    format: formatDuration,
    base: 10,
  },
  {
    title: 'Memory at most',
    reading: 'Most device memory held at once while reading, weights included.',
    value: ({ peakBytes }) => peakBytes,
    format: formatBytes,
    base: 2,
  },
  {
    title: 'State at the end',
    reading: 'What a model keeps of the text to go on from: a cache that grows, or a state of fixed size.',
    value: ({ stateBytes }) => stateBytes,
    format: formatBytes,
    base: 2,
  },
];

const stroke = (index: number): string => `var(--series-${index})`;

/** At most so many ticks an axis. */
const TICKS = 8;

/**
 * Ticks of a logarithmic axis between the least and the largest positive value: powers of 2, every n-th where they are many; or 1, 2
 * and 5 times powers of 10, or the powers alone. Values that enclose no such number are ticks themselves.
 */
export function logTicks(values: readonly number[], base: 2 | 10): number[] {
  const positive = values.filter((value) => value > 0);
  if (positive.length === 0) return [];
  const least = Math.min(...positive);
  const most = Math.max(...positive);
  const log = base === 2 ? Math.log2 : Math.log10;
  const exponents = Array.from({ length: Math.floor(log(most)) - Math.floor(log(least)) + 1 }, (_, i) => Math.floor(log(least)) + i);
  const within = (factors: readonly number[], every: number): number[] =>
    exponents
      .filter((e) => e % every === 0)
      .flatMap((e) => factors.map((factor) => factor * base ** e))
      .filter((tick) => tick >= least && tick <= most);
  const sets = base === 2 ? [within([1], 1), within([1], 2), within([1], 4)] : [within([1, 2, 5], 1), within([1], 1), within([1], 2)];
  const ticks = sets.find((set) => set.length <= TICKS) ?? [];
  return ticks.length > 1 ? ticks : [...new Set([least, most])];
}

/** Draws a plot against length. */
export function drawLengthPlot(document: Document, plot: LengthPlot, models: readonly ModelRecord[]): Element {
  const marks = models.flatMap((model, index) => {
    // A logarithmic axis has no place for zero.
    const points = model.curve.filter((point) => plot.value(point) > 0);
    const title = (point: LengthPoint): string => `${model.name}, ${formatCount(point.tokens)} tokens: ${plot.format(plot.value(point))}`;
    return [
      Plot.line(points, { x: 'tokens', y: plot.value, stroke: stroke(index), strokeWidth: 2.25, strokeDasharray: seriesStyle(index).dash }),
      Plot.dot(points, { x: 'tokens', y: plot.value, fill: stroke(index), stroke: 'var(--paper)', strokeWidth: 1, r: 4, title }),
    ];
  });
  const options: Plot.PlotOptions = {
    width: 520,
    height: 330,
    marginLeft: 72,
    marginRight: 28,
    marginBottom: 44,
    grid: true,
    x: {
      type: 'log',
      base: 2,
      label: 'tokens',
      ticks: logTicks(
        models.flatMap(({ curve }) => curve.map(({ tokens }) => tokens)),
        2,
      ),
      tickFormat: formatCount,
    },
    y: {
      type: 'log',
      label: null,
      ticks: logTicks(
        models.flatMap(({ curve }) => curve.map(plot.value)),
        plot.base,
      ),
      tickFormat: (value: number) => plot.format(value),
    },
    marks,
  };
  return drawPlot(
    document,
    options,
    `${plot.title} against its length in tokens, both logarithmic, for ${namesOf(models)}. ${plot.reading}`,
  );
}

/** Draws bits per byte against position in the text, each point a mean over its neighbours. */
export function drawPositionPlot(document: Document, { models, text }: DemoRecord): Element {
  const contexts = [...new Set(models.map(({ trainedContext }) => trainedContext))].filter((context) => context < text.tokens);
  const lines = models.map((model, index) => {
    const window = Math.max(1, Math.round(model.bitsByPosition.length / 16));
    const channels: Plot.LineOptions = {
      x: 'position',
      y: 'bits',
      stroke: stroke(index),
      strokeWidth: 2.25,
      strokeDasharray: seriesStyle(index).dash,
    };
    return Plot.line(model.bitsByPosition, Plot.windowY({ k: window, anchor: 'middle', reduce: 'mean' }, channels));
  });
  const options: Plot.PlotOptions = {
    width: 1080,
    height: 350,
    marginLeft: 52,
    marginRight: 20,
    marginBottom: 44,
    grid: true,
    x: { label: 'position in the text, tokens', tickFormat: formatCount, domain: [0, text.tokens] },
    y: { label: 'bits a byte', nice: true },
    marks: [
      Plot.ruleX(contexts, { stroke: 'var(--quiet)', strokeDasharray: '1 3' }),
      Plot.text(contexts, {
        x: (context: number) => context,
        frameAnchor: 'top',
        text: (context: number) => `trained on ${formatCount(context)} tokens`,
        textAnchor: 'start',
        dx: 6,
        dy: 4,
        fill: 'var(--quiet)',
      }),
      ...lines,
    ],
  };
  return drawPlot(document, options, `Bits a byte against position in the text for ${namesOf(models)}; lower is better.`);
}

function namesOf(models: readonly ModelRecord[]): string {
  return new Intl.ListFormat('en').format(models.map(({ name }) => name));
}
