import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { HeedError } from '@heed/core';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { DemoRecord } from '../src/record.js';
import { type ModelSource, passageOf, type ReadingTask, runDemo } from '../src/session.js';
import { madeUpRecord } from './records.js';

class Keeper extends Writable {
  text = '';
  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.text += chunk.toString('utf8');
    done();
  }
}

let folder = '';
let out = new Keeper();
let err = new Keeper();
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'heed-demo-'));
  out = new Keeper();
  err = new Keeper();
});
afterEach(() => rm(folder, { recursive: true }));

/** Models that answer with made-up figures, and what they were asked. */
function madeUpSource(fail?: Error): { source: ModelSource; tasks: ReadingTask[]; events: string[] } {
  const record = madeUpRecord(2048);
  const tasks: ReadingTask[] = [];
  const events: string[] = [];
  const source: ModelSource = {
    models: record.models.map(({ name }) => name),
    open: async () => {
      events.push('open');
      return {
        device: record.device,
        versions: record.versions,
        measure: async (model, task, progress) => {
          events.push(model);
          tasks.push(task);
          progress('reading', task.tokens.length, task.tokens.length);
          if (fail) throw fail;
          const found = record.models.find(({ name }) => name === model);
          if (!found) throw new Error(`no made-up model ${model}`);
          return found;
        },
        close: async () => void events.push('close'),
      };
    },
  };
  return { source, tasks, events };
}

const report = (): string => join(folder, 'report.html');

test('a run names the device, shows progress, prints table and passages, and writes the report', async () => {
  const { source, tasks, events } = madeUpSource();
  expect(await runDemo(['--report', report()], source, { out, err })).toBe(0);
  expect(events).toEqual(['open', 'softmax', 'lightning2', 'neighborhood', 'zeta', 'close']);
  expect(tasks[0]).toMatchObject({ continuation: 200, seed: 1 });
  expect(tasks.map(({ tokens }) => tokens.length)).toEqual([2048, 2048, 2048, 2048]);
  expect(out.text).toMatch(
    /^Device: llvmpipe .*\nText: Moby-Dick, chapters 132 to 135: 2,048 of [\d,]+ bytes\nsoftmax: reading 100 % \(2,048 of 2,048 tokens\)\n/,
  );
  expect(out.text).toContain('│ zeta ');
  expect(out.text).toContain('neighborhood goes on: hundred years ago');
  expect(out.text).toContain(`Report: ${report()}`);
  expect(err.text).toBe('');
  expect(await readFile(report(), 'utf8')).toContain('4 models read Moby-Dick');
});

test('--json without a file leaves standard output to the record alone', async () => {
  const { source } = madeUpSource();
  expect(await runDemo(['--json', '--models', 'zeta', '--tokens', '512', '--seed', '9', '--report', report()], source, { out, err })).toBe(
    0,
  );
  const record = JSON.parse(out.text) as DemoRecord;
  expect(record).toMatchObject({ seed: 9, text: { tokens: 512 }, models: [{ name: 'zeta' }] });
  expect(err.text).toContain('zeta: reading 100 %');
});

test('--json with a file writes there', async () => {
  const { source } = madeUpSource();
  const file = join(folder, 'record.json');
  expect(await runDemo(['--json', file, '--report', report()], source, { out, err })).toBe(0);
  expect(JSON.parse(await readFile(file, 'utf8'))).toHaveProperty('models.length', 4);
});

test('a text of the user is read from its beginning', async () => {
  const { source, tasks } = madeUpSource();
  const file = join(folder, 'mine.txt');
  await writeFile(file, 'A whale of a tale.');
  expect(await runDemo(['--text', file, '--tokens', '7', '--report', report()], source, { out, err })).toBe(0);
  expect(Buffer.from(tasks[0]?.tokens ?? []).toString()).toBe('A whale');
  expect(out.text).toContain('The text breaks off: … A whale');
});

test('--help prints and opens nothing', async () => {
  const { source, events } = madeUpSource();
  expect(await runDemo(['--help'], source, { out, err })).toBe(0);
  expect(out.text).toContain('--models <names...>');
  expect(events).toEqual([]);
});

test.each([
  ['an unknown model', ['--models', 'mamba'], /There is no model "mamba"/],
  ['no tokens', ['--tokens', '0'], /Expected tokens as a whole number of at least 1/],
  ['more tokens than the text has', ['--tokens', '80000'], /--tokens 80000 is more than Moby-Dick, chapters 132 to 135 has: \d+ bytes/],
  ['a missing text', ['--text', 'no-such-file.txt'], /there is no such file/],
  ['a folder as text', ['--text', '.'], /is a folder/],
  ['a report in a missing folder', ['--report', 'no-such-folder/r.html'], /there is no folder/],
  ['an unknown option', ['--fast'], /unknown option '--fast'/],
])('%s gets one sentence, status 2 and no device', async (_, args, sentence) => {
  const { source, events } = madeUpSource();
  expect(await runDemo(args, source, { out, err })).toBe(2);
  expect(err.text).toMatch(sentence);
  expect(err.text).toMatch(/^demo: [^\n]+\n$/);
  expect(out.text).toBe('');
  expect(events).toEqual([]);
});

test('an empty and a binary text get one sentence and status 2', async () => {
  const { source } = madeUpSource();
  const file = join(folder, 'text');
  await writeFile(file, '');
  expect(await runDemo(['--text', file], source, { out, err })).toBe(2);
  await writeFile(file, Buffer.from([80, 75, 3, 4, 0, 0, 8]));
  expect(await runDemo(['--text', file], source, { out, err })).toBe(2);
  expect(err.text).toMatch(/is empty; .*\n.*is binary or UTF-16 \(byte 4 is zero\); .*\n$/);
});

test.each([
  [
    'more tokens than memory holds',
    new HeedError('OUT_OF_MEMORY', 'core: 80 GiB'),
    2,
    'demo: the device cannot hold that many tokens; pass a smaller --tokens (core: 80 GiB)\n',
  ],
  ['a lost device', new HeedError('DEVICE_LOST', 'core: device lost'), 1, 'core: device lost\n'],
  ['a fault of ours', new TypeError('x is undefined'), 1, 'TypeError: x is undefined\n'],
])('%s ends the run, and the device is closed', async (_, fail, status, message) => {
  const { source, events } = madeUpSource(fail);
  expect(await runDemo(['--report', report()], source, { out, err })).toBe(status);
  expect(err.text.startsWith(message)).toBe(true);
  expect(events).toEqual(['open', 'softmax', 'close']);
});

test('no adapter is something to be put right: status 2 and the words of the device', async () => {
  const source: ModelSource = {
    models: ['softmax'],
    open: () => Promise.reject(new HeedError('NO_ADAPTER', 'core: no adapter; install one')),
  };
  expect(await runDemo(['--report', report()], source, { out, err })).toBe(2);
  expect(err.text).toBe('core: no adapter; install one\n');
});

test('the passage begins at a word and ends where the reading ends', () => {
  const bytes = new TextEncoder().encode('word '.repeat(100) + 'end');
  expect(passageOf(bytes)).toMatch(/^word word .* end$/);
  expect(passageOf(bytes).length).toBeLessThanOrEqual(240);
  expect(passageOf(new TextEncoder().encode('short'))).toBe('short');
});

test('control characters of a model do not reach the terminal', async () => {
  const { source } = madeUpSource();
  const open = source.open;
  const escaping: ModelSource = {
    models: ['zeta'],
    open: async () => {
      const host = await open();
      return { ...host, measure: async (...asked) => ({ ...(await host.measure(...asked)), continuation: '\u001B[2Jgone' }) };
    },
  };
  await runDemo(['--report', report()], escaping, { out, err });
  expect(out.text).toContain('zeta goes on: [2Jgone');
  expect(out.text).not.toContain('\u001B');
});
