import { parseHTML } from 'linkedom';
import { expect, test } from 'vitest';
import type { DemoRecord } from '../src/record.js';
import { logTicks } from '../src/report/plots.js';
import { renderReport } from '../src/report.js';
import { madeUpRecord } from './records.js';

function reportOf(record: DemoRecord): { html: string; document: Document } {
  const html = renderReport(record);
  return { html, document: parseHTML(html).document };
}

const texts = (elements: Iterable<Element>): string[] => [...elements].map((element) => element.textContent ?? '');

test('the report is one file: no script, nothing fetched, and a policy that says so', () => {
  const { html, document } = reportOf(madeUpRecord());
  expect(document.querySelectorAll('script, link, img, iframe, object, [src], [href]').length).toBe(0);
  expect(html).not.toMatch(/url\(|@import|https?:\/\/(?!www\.w3\.org)/);
  expect(document.querySelector('meta[http-equiv=Content-Security-Policy]')?.getAttribute('content')).toBe(
    "default-src 'none'; style-src 'unsafe-inline'",
  );
  expect(html).toMatch(/^<!doctype html>/i);
  expect(html).not.toMatch(/NaN|undefined|Infinity/);
});

test('the comparison has a row a model with the figures of the terminal', () => {
  const { document } = reportOf(madeUpRecord());
  const rows = [...(document.querySelector('table')?.querySelectorAll('tbody tr') ?? [])];
  expect(rows.map((row) => texts(row.children))).toEqual([
    ['softmax', '3.35 M', '3.099', '603', '4.22', '296 MiB', '512 MiB'],
    ['lightning2', '3.35 M', '1.918', '47,619', '333', '296 MiB', '256 KiB'],
    ['neighborhood', '3.35 M', '1.878', '40,000', '280', '296 MiB', '2 MiB'],
    ['zeta', '3.35 M', '2.076', '20,930', '147', '296 MiB', '325 MiB'],
  ]);
});

test('there is a plot of quality and four of cost, each with a line and dots a model, a spoken text and its figures', () => {
  const { document } = reportOf(madeUpRecord());
  const figures = [...document.querySelectorAll('figure')];
  expect(figures).toHaveLength(5);
  for (const [index, figure] of figures.entries()) {
    const svg = figure.querySelector('svg[role=img]');
    expect(svg?.getAttribute('aria-label')).toContain('softmax, lightning2, neighborhood, and zeta');
    expect(svg?.querySelectorAll('g[aria-label=line] path')).toHaveLength(4);
    expect(svg?.querySelectorAll('g[aria-label=dot] circle')).toHaveLength(index === 0 ? 0 : 4 * 8);
    expect(figure.querySelectorAll('details tbody tr').length).toBe(index === 0 ? 4 * 128 : 4 * 8);
  }
  expect(texts(document.querySelectorAll('h3'))).toEqual(expect.arrayContaining(['Time to read a text', 'State at the end']));
});

test('the trained length is marked where the text is longer', () => {
  expect(renderReport(madeUpRecord())).toContain('trained on 2,048 tokens');
  expect(renderReport(madeUpRecord(1024))).not.toContain('trained on');
});

test('a model writes on below the passage, and a run without continuations has no such part', () => {
  const record = madeUpRecord();
  expect(texts(reportOf(record).document.querySelectorAll('blockquote'))[1]).toMatch(/^hundred years ago, and the softmax/);
  const silent = { ...record, models: record.models.map((model) => ({ ...model, continuation: '' })) };
  expect(reportOf(silent).document.querySelectorAll('blockquote')).toHaveLength(0);
});

test('whatever a text, a model or a driver says stays text', () => {
  const evil = '</title><script>alert("1")</script><img src=x onerror=\'y\'>&amp;';
  const record = madeUpRecord(2048);
  const { document } = reportOf({
    ...record,
    passage: evil,
    text: { ...record.text, name: evil },
    device: { ...record.device, name: evil, driver: evil, features: [evil] },
    versions: { [evil]: evil },
    models: record.models.map((model) => ({ ...model, name: evil, continuation: `${evil}\u0007\u001B[2J` })),
  });
  expect(document.querySelectorAll('script, img').length).toBe(0);
  expect(document.querySelector('title')?.textContent).toBe('Heed: 4 models read 2,048 tokens');
  expect(document.querySelector('h1')?.textContent).toBe(`4 models read ${evil}`);
  expect(document.querySelector('blockquote + h3 + blockquote')?.textContent).toBe(`${evil}\uFFFD\uFFFD[2J`);
  // linkedom escapes only the quotes of an attribute: enough to stay within it, so that `&amp;` reads as `&`.
  expect(document.querySelector('svg[role=img]')?.getAttribute('aria-label')).toContain(evil.replace('&amp;', '&'));
});

test('one model, one length and a state of no bytes can be drawn', () => {
  const record = madeUpRecord(512);
  const [first] = record.models;
  if (first === undefined) throw new Error('the made-up record has no model');
  const { html, document } = reportOf({
    ...record,
    models: [{ ...first, curve: first.curve.map((point) => ({ ...point, stateBytes: 0 })) }],
  });
  expect(html).not.toMatch(/NaN|Infinity/);
  expect(document.querySelector('h1')?.textContent).toMatch(/^One model reads /);
});

test('logarithmic ticks are round, within the values and at most eight', () => {
  expect(logTicks([512, 65_536], 2)).toEqual([512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]);
  expect(logTicks([2 ** 10, 2 ** 20], 2)).toEqual([2 ** 10, 2 ** 12, 2 ** 14, 2 ** 16, 2 ** 18, 2 ** 20]);
  expect(logTicks([0.9, 12], 10)).toEqual([1, 2, 5, 10]);
  expect(logTicks([3, 4], 10)).toEqual([3, 4]);
  expect(logTicks([7, 0], 2)).toEqual([7]);
  expect(logTicks([0], 10)).toEqual([]);
});
