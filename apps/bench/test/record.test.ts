import { expect, test } from 'vitest';
import { renderPage } from '../src/page.js';
import { floorOf, joinRecords, mergePeers } from '../src/record.js';
import { quantile, timingOf } from '../src/measure/statistics.js';
import { entry, peers, record } from './records.js';

test('a ratio is the peer over ours, with cold caches on both sides', () => {
  const merged = mergePeers(record([entry('matmul/f16/4096', { ms: 0.5 })]), [peers([{ id: 'matmul/f16/4096', ms: 0.2 }])]);
  expect(merged.entries[0]).toMatchObject({ peer: { name: 'cuBLAS', ms: 0.2 }, ratio: 0.4 });
});

test('a peer whose result is wrong is no peer, and is told', () => {
  const merged = mergePeers(record([entry('a', {})]), [peers([{ id: 'a', error: 0.5 }])]);
  expect(merged.entries[0]?.peer).toBeUndefined();
  expect(merged.failures).toEqual([{ id: 'a', why: 'cuBLAS: error 5.0e-1 is over 0.002' }]);
});

test('the fastest peer counts, whatever the order, and the others stand beside', () => {
  const slow = peers([{ id: 'a', ms: 3, name: 'other' }]);
  const merged = mergePeers(record([entry('a', { ms: 1 })]), [slow, peers([{ id: 'a', ms: 2 }])]);
  expect(merged.entries[0]).toMatchObject({ ratio: 2, otherPeers: [{ name: 'other', ms: 3 }] });
});

test('a floor is the larger of bytes at copy speed and operations at product speed', () => {
  const rates = { copyGbps: 1000, f16Tflops: 100, f32Tflops: 10, from: 'a test' };
  const work = { algorithm: 'all once', bytes: 1e9, flops: 1e9, units: 'f16' } as const;
  expect(floorOf(work, rates)).toMatchObject({ ms: 1, why: 'all once: 1000 MB at 1000 GB/s (a test)' });
  expect(floorOf({ ...work, flops: 1e12 }, rates)).toMatchObject({ ms: 10, why: 'all once: 1000 GFLOP at 100 TFLOP/s (a test)' });
  expect(floorOf({ ...work, flops: 1e12, units: 'f32' }, rates).ms).toBe(100);
});

test('floors use the best rates that anybody reached in the run', () => {
  const floor = floorOf({ algorithm: 'x', bytes: 0, flops: 1e12, units: 'f16' }, record([]).device.rates);
  const merged = mergePeers(record([entry('a', { ms: 10, floor, floorShare: floor.ms / 10 })]), [peers([], { f16Tflops: 500 })]);
  expect(merged.entries[0]).toMatchObject({ floor: { ms: 2 }, floorShare: 0.2 });
});

test('rows of an earlier commit say so in a joined record, and the page names them', () => {
  const joined = joinRecords([{ ...record([entry('a', {})]), commit: 'before' }, record([entry('b', {})])]);
  expect(joined.entries.map(({ earlier }) => earlier?.commit)).toEqual(['before', undefined]);
  expect(renderPage([joined], {})).toContain('commit before, their peers as well: `a`.');
});

test('records of one device join, the later figures counting', () => {
  const joined = joinRecords([record([entry('a', { ms: 1 }), entry('b', {})]), record([entry('a', { ms: 2 })])]);
  expect(joined.entries.map(({ id, ms }) => [id, ms])).toEqual([
    ['a', 2],
    ['b', 1],
  ]);
  const other = record([]);
  expect(() => joinRecords([other, { ...other, device: { ...other.device, name: 'another' } }])).toThrow(/do not join/);
});

test('quartiles interpolate', () => {
  expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5);
  expect(timingOf([5, 1, 2, 3, 4])).toEqual({ ms: 3, quartiles: [2, 4], repeats: 5 });
});
