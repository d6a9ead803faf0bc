import { expect, test } from 'vitest';
import { renderPage } from '../src/page.js';
import { mergePeers, recordName } from '../src/record.js';
import { renderReport } from '../src/report.js';
import { crossings, maskFactors, propertiesOf, TARGETS, verdictOf } from '../src/targets.js';
import { figure, resultTable } from '../src/terminal.js';
import { entry, peers, record } from './records.js';

const curve = (name: string, times: readonly number[]): ReturnType<typeof entry>[] =>
  times.map((ms, i) => entry(`${name}/${2 ** (16 + i)}/forward`, { ms, series: { name, tokens: 2 ** (16 + i) } }));

const id = 'matmul/f16/4096';
const measured = mergePeers(
  record([
    entry(id, { ms: 0.5 }),
    ...curve('zeta', [1, 2.2, 5.5]),
    ...curve('lightning2/f16/d64', [2, 4.2, 8]),
    ...curve('lightning/f16/d64', [2.5, 6]),
  ]),
  [peers([{ id, ms: 0.2 }])],
);

test('the table has a column only where a row has something to say', () => {
  const text = resultTable(measured);
  expect(text).toContain('cuBLAS 0.2 ms');
  expect(text).toContain('1.0e-3');
  expect(resultTable(record([entry('a', {})]))).not.toContain('peer');
});

test('figures have three digits, and are whole from 1,000 on', () => {
  expect([0.01234, 12.345, 1234.5, undefined].map(figure)).toEqual(['0.0123', '12.3', '1,235', '-']);
});

test('a target is missed, reached, or its aim is', () => {
  const wanted = TARGETS.find((target) => target.id === id) as (typeof TARGETS)[number];
  const verdict = (ratio: number): string => verdictOf(wanted, entry(id, { ratio }));
  expect([0.34, 0.35, 0.5].map(verdict)).toEqual(['missed', 'reached', 'aim reached']);
  expect(verdictOf(wanted, undefined)).toBe('not measured');
});

test('properties tell growth a doubling and spread of the time a token', () => {
  const found = new Map(propertiesOf(measured).map((one) => [one.what, one.found]));
  expect(found.get('zeta: growth a doubling, from 16k')).toEqual({ text: '2.50x', holds: false });
  expect(found.get('lightning2: spread of the time a token, 64k to 1M')).toEqual({ text: '5.00 %', holds: true });
  expect(found.get('lightning: spread of the time a token, 64k to 256k')).toEqual({ text: '20.0 %', holds: false });
  expect(found.get('scans with one decay a head: time over that of lightning2 at the same state, the worst')).toEqual({
    text: '1.43x',
    holds: true,
  });
});

test('curves cross where the faster one overtakes, straight in logarithms', () => {
  const [steep, flat] = [curve('steep', [1, 4]), curve('flat', [2, 2])];
  expect(crossings(record([...steep, ...flat]))).toEqual([{ faster: 'flat', than: 'steep', tokens: Math.round(2 ** 16.5) }]);
});

test('a mask is held against its listed tiles times the time of the full mask', () => {
  const mask = (name: string, listed: number): { name: string; area: number; density: number; listed: number } => ({
    name,
    area: 1,
    density: listed,
    listed,
  });
  const entries = [
    entry('mask/full/f16', { ms: 10, mask: mask('full', 1) }),
    entry('mask/causal/f16', { ms: 6, mask: mask('causal', 0.5) }),
  ];
  expect(maskFactors({ entries }).map(({ factor }) => factor)).toEqual([1, 1.2]);
});

test('the page names what was timed with a slow clock, and says nothing where none was', () => {
  const [slow, fast] = [entry('zeta/64/forward', { clock: 0.7 }), entry('zeta/128/forward', { clock: 0.99 })];
  expect(renderPage([record([slow, fast])], {})).toContain('- `zeta/64/forward`: 70 %');
  expect(renderPage([record([fast])], {})).not.toContain('Clock of the multiprocessors');
});

test('the page has the newest record of each device, its targets and what bounds the misses', () => {
  const older = { ...measured, date: '2026-01-01T00:00:00.000Z', commit: 'older' };
  const bad = mergePeers(record([entry(id, { ms: 5 })]), [peers([{ id, ms: 0.2 }])]);
  const page = renderPage([older, bad], { [id]: 'workgroup memory.' });
  expect(page).not.toContain('older');
  expect(page).toContain('| `matmul/f16/4096` | 5 | 1.0e-3 | cuBLAS, 0.2 ms | 0.04 | 0.35 | 0.5 | missed |');
  expect(page).toContain('- `matmul/f16/4096`: workgroup memory.');
});

test('a record is named by its day and device', () => {
  expect(recordName(measured)).toBe('2026-11-22-nvidia-h100-80gb-hbm3.json');
});

test('the report is one file without scripts, with a picture of each mask', () => {
  const html = renderReport(measured);
  expect(html).toContain("default-src 'none'");
  expect(html).not.toContain('<script');
  expect(html.match(/aria-label="The mask /g)).toHaveLength(14);
  expect(html).toContain('aim');
});
