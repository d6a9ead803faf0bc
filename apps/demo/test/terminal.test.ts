import { Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { formatDuration, formatNumber, formatParameters } from '../src/format.js';
import { describeDevice, describeExtrapolation, describeText } from '../src/table.js';
import { resultTable, Terminal } from '../src/terminal.js';
import { madeUpRecord } from './records.js';

test('the table has numbers flush right with units in its headings, within 84 columns', () => {
  const lines = resultTable(madeUpRecord()).split('\n');
  expect(lines.slice(1, 5)).toEqual([
    '│ model        │ parameters │   bits │  prefill │   decode │  memory │      state │',
    '│              │            │ a byte │ tokens/s │ tokens/s │ at most │ at the end │',
    '├──────────────┼────────────┼────────┼──────────┼──────────┼─────────┼────────────┤',
    '│ softmax      │     3.35 M │  3.099 │      603 │     4.22 │ 296 MiB │    512 MiB │',
  ]);
  expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(84);
  expect(lines.join('')).not.toContain('\u001B');
});

test('numbers keep three digits and durations their unit', () => {
  expect([0.04213, 4.2149, 4213.4].map(formatNumber)).toEqual(['0.0421', '4.21', '4,213']);
  expect([12.34, 1234, 125_000].map(formatDuration)).toEqual(['12.3 ms', '1.23 s', '2.1 min']);
  expect([940_000, 3_345_664].map(formatParameters)).toEqual(['940 k', '3.35 M']);
});

test('device and text are sentences', () => {
  const { device, text } = madeUpRecord();
  expect(describeDevice(device)).toBe(
    'llvmpipe (LLVM 19.1.4, 256 bits) (Mesa 25.0.7), tier subgroups, a software device: the processor does the work of a GPU',
  );
  expect(describeDevice({ ...device, software: false, driver: '' })).toBe('llvmpipe (LLVM 19.1.4, 256 bits), tier subgroups');
  expect(describeText(text)).toBe('Moby-Dick, chapters 132 to 135: 65,536 of 74,131 bytes');
  expect(describeText({ ...text, tokens: text.bytes })).toBe('Moby-Dick, chapters 132 to 135: all 74,131 bytes');
});

test('a text longer than the training sequences gets a sentence on which models lose their way', () => {
  expect(describeExtrapolation(madeUpRecord(2048))).toBeUndefined();
  const long = madeUpRecord(65_536);
  expect(describeExtrapolation(long)).toMatch(
    /^Trained on 2,048 tokens at a time; behind that softmax \(1\.\d\d bits a byte up to there, \d\.\d\d behind\) loses its way/,
  );
  const steady = { ...long, models: long.models.filter(({ name }) => name !== 'softmax') };
  expect(describeExtrapolation(steady)).toBe('Trained on 2,048 tokens at a time; all of them read on behind that as well as before.');
});

test('a new stage begins a new count, and a line of text ends it', () => {
  let written = '';
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      written += chunk.toString('utf8');
      done();
    },
  });
  const terminal = new Terminal(stream);
  terminal.progress('softmax: reading', 50, 100);
  terminal.progress('softmax: reading', 100, 100);
  terminal.progress('softmax: writing', 10, 10);
  terminal.say('Report: r.html');
  terminal.finish();
  expect(written.split('\n')).toEqual([
    'softmax: reading 50 % (50 of 100 tokens)',
    'softmax: reading 100 % (100 of 100 tokens)',
    'softmax: writing 100 % (10 of 10 tokens)',
    'Report: r.html',
    '',
  ]);
});
