import { chartColors, newDocument, seriesStyle } from '@heed/lab/chart';
import { formatCount } from './format.js';
import type { DemoRecord, ModelRecord } from './record.js';
import { elementMaker, type ElementMaker } from './report/element.js';
import { drawLengthPlot, drawPositionPlot, LENGTH_PLOTS, type LengthPlot } from './report/plots.js';
import { REPORT_STYLE } from './report/style.js';
import { COLUMNS, describeDevice, describeExtrapolation, describeText } from './table.js';

/**
 * The report of a run as one HTML file: comparison, plots, passages, device. It has no script, fetches nothing (its own policy
 * forbids that), follows the reader's light or dark setting, and gives each plot's figures as a table too.
 */
export function renderReport(record: DemoRecord): string {
  const document = newDocument();
  const make = elementMaker(document);
  document.head.append(...headOf(record, make));
  document.body.append(
    make(
      'main',
      {},
      make('h1', {}, titleOf(record)),
      make('p', { class: 'quiet' }, `${describeText(record.text)} · ${describeDevice(record.device)} · ${dayOf(record.date)}`),
      ...comparison(record, make),
      ...quality(record, document, make),
      ...costs(record, document, make),
      ...passages(record, make),
      ...circumstances(record, make),
    ),
  );
  return `${document.toString()}\n`;
}

function titleOf({ models, text }: DemoRecord): string {
  return `${countOf(models)} ${text.name}`;
}

function countOf(models: readonly ModelRecord[]): string {
  return models.length === 1 ? 'One model reads' : `${formatCount(models.length)} models read`;
}

/** `2026-11-22 10:15 UTC`. */
function dayOf(date: string): string {
  return `${date.slice(0, 16).replace('T', ' ')} UTC`;
}

function headOf(record: DemoRecord, make: ElementMaker): Element[] {
  return [
    make('meta', { charset: 'utf-8' }),
    make('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
    make('meta', { 'http-equiv': 'Content-Security-Policy', content: "default-src 'none'; style-src 'unsafe-inline'" }),
    // Only words of ours: linkedom writes a title's text without escaping it.
    make('title', {}, `Heed: ${countOf(record.models)} ${formatCount(record.text.tokens)} tokens`),
    make('style', {}, `${chartColors(record.models.length)}${REPORT_STYLE}`),
  ];
}

function comparison(record: DemoRecord, make: ElementMaker): Element[] {
  const { models } = record;
  const cell = (numeric: boolean): Record<string, string> => (numeric ? { class: 'number' } : {});
  const heading = make(
    'tr',
    {},
    ...COLUMNS.map(({ heading: [first, second], numeric }) => make('th', { scope: 'col', ...cell(numeric) }, first, make('br'), second)),
  );
  const rows = models.map((model, index) =>
    make(
      'tr',
      {},
      ...COLUMNS.map(({ value, numeric }, column) =>
        column === 0 ? make('th', { scope: 'row' }, swatch(index, make), value(model)) : make('td', cell(numeric), value(model)),
      ),
    ),
  );
  const caption = make('caption', {}, 'Bits a byte: how surprising the text was to the model; lower is better.');
  const table = make('div', { class: 'scroll' }, make('table', {}, caption, make('thead', {}, heading), make('tbody', {}, ...rows)));
  const extrapolation = describeExtrapolation(record);
  return extrapolation === undefined ? [table] : [table, make('p', {}, extrapolation)];
}

function quality(record: DemoRecord, document: Document, make: ElementMaker): Element[] {
  const caption =
    'Mean over a running window. Lower is better; a line that climbs beyond the trained length shows a model that loses its way.';
  const points = record.models.map(({ name, bitsByPosition }) =>
    bitsByPosition.map(({ position, bits }) => [name, formatCount(position), bits.toFixed(3)]),
  );
  return [
    make('h2', {}, 'How well each model predicts, along the text'),
    legend(record.models, make),
    make(
      'figure',
      {},
      make('div', { class: 'scroll wide' }, drawPositionPlot(document, record)),
      make('figcaption', {}, make('p', {}, caption)),
      figures(['model', 'position', 'bits a byte'], points.flat(), make),
    ),
  ];
}

function costs({ models }: DemoRecord, document: Document, make: ElementMaker): Element[] {
  const figure = (plot: LengthPlot): Element =>
    make(
      'figure',
      {},
      make('figcaption', {}, make('h3', {}, plot.title), make('p', {}, plot.reading)),
      drawLengthPlot(document, plot, models),
      figures(['model', 'tokens', plot.title.toLowerCase()], rowsOf(models, plot), make),
    );
  return [
    make('h2', {}, 'What it costs, against length'),
    legend(models, make),
    make('div', { class: 'plots' }, ...LENGTH_PLOTS.map(figure)),
  ];
}

function rowsOf(models: readonly ModelRecord[], { value, format }: LengthPlot): string[][] {
  return models.flatMap(({ name, curve }) => curve.map((point) => [name, formatCount(point.tokens), format(value(point))]));
}

function passages({ passage, models, seed }: DemoRecord, make: ElementMaker): Element[] {
  const written = models.map((model, index) => ({ ...model, index })).filter(({ continuation }) => continuation !== '');
  if (written.length === 0) return [];
  return [
    make('h2', {}, 'How each model goes on'),
    make(
      'p',
      { class: 'quiet' },
      `The text breaks off, and each model writes on (seed ${seed}). Models of this size know words and manner, not sense.`,
    ),
    make('blockquote', {}, `… ${visible(passage)}`),
    ...written.flatMap(({ name, continuation, index }) => [
      make('h3', {}, name),
      make('blockquote', { style: `border-color: var(--series-${index})` }, visible(continuation)),
    ]),
  ];
}

function circumstances({ device, versions, text }: DemoRecord, make: ElementMaker): Element[] {
  const entries: [string, string][] = [
    ['device', device.name],
    ['driver', device.driver === '' ? 'not named by the adapter' : device.driver],
    ['tier', `${device.tier}${device.software ? ' (software: the processor does the work of a GPU)' : ''}`],
    ['features', device.features.length === 0 ? 'none beyond the guaranteed ones' : device.features.join(', ')],
    ['text', `${text.name}, ${formatCount(text.bytes)} bytes, of which ${formatCount(text.tokens)} read; one byte is one token`],
    ...Object.entries(versions),
  ];
  return [
    make('h2', {}, 'Device and versions'),
    make('dl', {}, ...entries.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)])),
  ];
}

function legend(models: readonly ModelRecord[], make: ElementMaker): Element {
  return make('ul', { class: 'legend' }, ...models.map(({ name }, index) => make('li', {}, swatch(index, make), name)));
}

/** A short stretch of a model's line. */
function swatch(index: number, make: ElementMaker): Element {
  const line = make('line', {
    x1: '1',
    x2: '31',
    y1: '6',
    y2: '6',
    stroke: `var(--series-${index})`,
    'stroke-width': '3',
    'stroke-dasharray': seriesStyle(index).dash,
  });
  return make('svg', { width: '32', height: '12', 'aria-hidden': 'true' }, line);
}

function figures(headings: readonly string[], rows: readonly (readonly string[])[], make: ElementMaker): Element {
  const head = make(
    'tr',
    {},
    ...headings.map((heading, column) => make('th', { scope: 'col', ...(column > 0 && { class: 'number' }) }, heading)),
  );
  const body = rows.map((row) =>
    make(
      'tr',
      {},
      ...row.map((text, column) => (column === 0 ? make('th', { scope: 'row' }, text) : make('td', { class: 'number' }, text))),
    ),
  );
  return make(
    'details',
    {},
    make('summary', {}, 'The figures'),
    make('div', { class: 'scroll' }, make('table', {}, make('thead', {}, head), make('tbody', {}, ...body))),
  );
}

/** Control characters, which a model may well write, as the replacement character; line ends and tabs stay. */
function visible(text: string): string {
  return text.replace(/(?![\n\t])\p{Cc}/gu, '\uFFFD');
}
