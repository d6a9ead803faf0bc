import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { shippedModels } from '../src/models.js';
import type { DemoRecord } from '../src/record.js';
import { runDemo } from '../src/session.js';

test('a shipped model reads a short text on this device, writes on and leaves a report', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'heed-demo-'));
  const said: string[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      said.push(chunk.toString());
      done();
    },
  });
  try {
    await writeFile(
      join(folder, 'text.txt'),
      'It was a clear steel-blue day. The firmaments of air and sea were hardly separable in that all-pervading azure.',
    );
    const args = [
      '--text',
      join(folder, 'text.txt'),
      '--models',
      'neighborhood',
      '--continue',
      '6',
      '--report',
      join(folder, 'r.html'),
      '--json',
      join(folder, 'r.json'),
    ];
    expect(await runDemo(args, shippedModels(), { out: stream, err: stream })).toBe(0);
    const record = JSON.parse(await readFile(join(folder, 'r.json'), 'utf8')) as DemoRecord;
    const [model] = record.models;
    expect(model?.parameters).toBe(3_344_640);
    // chance is 8 bits, a model that knows English is far below
    expect(model?.bitsPerByte).toBeLessThan(3.5);
    expect(model?.stateBytes).toBeGreaterThan(0);
    expect(await readFile(join(folder, 'r.html'), 'utf8')).toContain('<svg');
    expect(said.join('')).toContain('neighborhood');
  } finally {
    await rm(folder, { recursive: true });
  }
}, 120_000);

test('the models are listed in the order in which they run', () => {
  expect(shippedModels().models.slice(0, 4)).toEqual(['softmax', 'lightning2', 'neighborhood', 'zeta']);
});
