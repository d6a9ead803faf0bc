import { chartColors, newDocument } from '@heed/lab/chart';
import type { BenchRecord, RecordEntry } from './record.js';
import { type ElementMaker, elementMaker } from './report/element.js';
import { maskGallery } from './report/masks.js';
import { drawCurves, drawFloors, drawRatios, type Series, seriesOf } from './report/plots.js';
import { REPORT_STYLE } from './report/style.js';
import { crossings, propertiesOf, TARGETS, verdictOf } from './targets.js';
import { COLUMNS, describeDevice, figure, percent } from './terminal.js';

/** Tokens of the pictures when the record has no mask. */
const PICTURE_TOKENS = 16_384;

/** The report of a record as one HTML file: no script, nothing fetched, light or dark as the reader has it. */
export function renderReport(record: BenchRecord): string {
  const document = newDocument();
  const make = elementMaker(document);
  document.head.append(
    make('meta', { charset: 'utf-8' }),
    make('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
    make('meta', { 'http-equiv': 'Content-Security-Policy', content: "default-src 'none'; style-src 'unsafe-inline'" }),
    make('title', {}, 'Heed: long-context attention benchmark'),
    make('style', {}, `${chartColors(4)}${REPORT_STYLE}`),
  );
  document.body.append(
    make(
      'main',
      {},
      make('h1', {}, `Long-context attention benchmark: ${record.suite}`),
      make(
        'p',
        { class: 'quiet' },
        `${describeDevice(record)} · ${record.date.slice(0, 16).replace('T', ' ')} UTC · commit ${record.commit}`,
      ),
      make('p', {}, 'Medians of GPU time with cold caches; every time stands with the error of sampled rows against float64.'),
      ...targets(record, make),
      ...peers(record, document, make),
      ...curves(record, document, make),
      ...floors(record, document, make),
      ...masks(record, document, make),
      ...everything(record, make),
    ),
  );
  return `${document.toString()}\n`;
}

function grid(
  make: ElementMaker,
  heading: readonly string[],
  rows: readonly (readonly string[])[],
  numeric: readonly number[] = [],
): Element {
  const attributes = (column: number): Record<string, string> => (numeric.includes(column) ? { class: 'number' } : {});
  const cell = (text: string, column: number): Element => make('td', text === 'missed' ? { class: 'missed' } : attributes(column), text);
  return make(
    'div',
    { class: 'scroll' },
    make(
      'table',
      {},
      make('thead', {}, make('tr', {}, ...heading.map((text, i) => make('th', { scope: 'col', ...attributes(i) }, text)))),
      make('tbody', {}, ...rows.map((row) => make('tr', {}, ...row.map(cell)))),
    ),
  );
}

function targets(record: BenchRecord, make: ElementMaker): Element[] {
  const entryOf = (id: string): RecordEntry | undefined => record.entries.find((entry) => entry.id === id);
  const rows = TARGETS.map((target) => {
    const entry = entryOf(target.id);
    return [
      target.id,
      entry?.ratio === undefined ? '-' : entry.ratio.toFixed(2),
      String(target.atLeast),
      String(target.aim),
      verdictOf(target, entry),
    ];
  });
  const properties = propertiesOf(record).flatMap(({ what, wanted, found }) =>
    found ? [[what, wanted, found.text, found.holds ? 'holds' : 'missed']] : [],
  );
  return [
    ...(record.device.software ? [] : [make('h2', {}, 'Targets'), grid(make, ['what', 'ratio', 'at least', 'aim', ''], rows, [1, 2, 3])]),
    ...(properties.length === 0 ? [] : [make('h2', {}, 'Properties'), grid(make, ['what', 'wanted', 'found', ''], properties, [2])]),
  ];
}

function peers({ entries }: BenchRecord, document: Document, make: ElementMaker): Element[] {
  if (!entries.some(({ ratio }) => ratio !== undefined)) return [];
  return [make('h2', {}, 'Against peers'), make('figure', {}, make('div', { class: 'scroll' }, drawRatios(document, entries)))];
}

function curves(record: BenchRecord, document: Document, make: ElementMaker): Element[] {
  const crossed = crossings(record);
  const blocks = (['forward', 'backward', 'decode'] as const).flatMap((pass) => {
    const series = seriesOf(record, pass);
    if (series.length === 0) return [];
    const plot = (title: string, value: (entry: RecordEntry) => number): Element =>
      make(
        'figure',
        {},
        make('figcaption', {}, make('h3', {}, title)),
        drawCurves(document, series, value, `${title} against tokens, both logarithmic.`),
      );
    return [
      make('h2', {}, `Against length: ${pass}`),
      legend(series, make),
      make(
        'div',
        { class: 'plots' },
        plot('GPU time, ms', ({ ms }) => ms),
        plot('Most bytes alive, MiB', ({ bytes = 0 }) => bytes / 2 ** 20),
      ),
    ];
  });
  if (crossed.length === 0) return blocks;
  const rows = crossed.map(({ faster, than, tokens }) => [faster, than, figure(tokens)]);
  return [...blocks, make('h2', {}, 'Crossover points'), grid(make, ['faster', 'than', 'from tokens'], rows, [2])];
}

function legend(series: readonly Series[], make: ElementMaker): Element {
  return make(
    'ul',
    { class: 'legend' },
    ...series.map(({ name, color }) => make('li', {}, make('span', { class: 'swatch', style: `background: ${color}` }), name)),
  );
}

function floors({ entries }: BenchRecord, document: Document, make: ElementMaker): Element[] {
  const rows = entries.flatMap(({ id, floor, floorShare }) => (floor ? [[id, figure(floor.ms), percent(floorShare), floor.why]] : []));
  if (rows.length === 0) return [];
  return [
    make('h2', {}, 'Fraction of the floor'),
    make('figure', {}, make('div', { class: 'scroll' }, drawFloors(document, entries))),
    grid(make, ['what', 'floor, ms', 'reached', 'why'], rows, [1, 2]),
  ];
}

function masks({ entries }: BenchRecord, document: Document, make: ElementMaker): Element[] {
  const measured = entries.find(({ mask }) => mask);
  const tokens = typeof measured?.shape['tokens'] === 'number' ? measured.shape['tokens'] : PICTURE_TOKENS;
  const caption = (name: string): string => {
    const entry = entries.find(({ mask, pass }) => mask?.name === name && pass === 'forward');
    return entry?.mask ? `density ${percent(entry.mask.density)}, listed ${percent(entry.mask.listed)}, ${figure(entry.ms)} ms` : '';
  };
  return [
    make('h2', {}, `The 14 masks, at ${figure(tokens)} tokens`),
    make('p', { class: 'quiet' }, 'Queries down, keys across; a tile is as dark as it is visible, and blank ones are skipped.'),
    maskGallery(document, make, tokens, caption),
  ];
}

function everything({ entries, failures, compiles = [] }: BenchRecord, make: ElementMaker): Element[] {
  const numeric = COLUMNS.flatMap((column, i) => (column.numeric ? [i] : []));
  const rows = entries.map((entry) => COLUMNS.map(({ value }) => value(entry)));
  const slow = compiles.slice(0, 40).map(({ kernel, ms }) => [kernel, figure(ms)]);
  return [
    make('h2', {}, 'Everything'),
    grid(
      make,
      COLUMNS.map(({ heading }) => heading),
      rows,
      numeric,
    ),
    ...(failures.length === 0
      ? []
      : [
          make('h2', {}, 'No result'),
          grid(
            make,
            ['what', 'why'],
            failures.map(({ id, why }) => [id, why]),
          ),
        ]),
    ...(slow.length === 0 ? [] : [make('h2', {}, 'Compile times'), grid(make, ['kernel', 'ms'], slow, [1])]),
  ];
}
