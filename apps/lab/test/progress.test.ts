import { Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { type ProgressStream, startProgress, trainingNote } from '../src/progress.js';

/** A stream that keeps what is written; a terminal of 100 columns when `isTTY`. */
function keeper(isTTY: boolean): { stream: ProgressStream; written: () => string } {
  let kept = '';
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      kept += chunk.toString('utf8');
      done();
    },
  });
  return { stream: Object.assign(stream, { isTTY, columns: 100 }), written: () => kept };
}

test('without a terminal each tenth is a plain line, once', () => {
  const { stream, written } = keeper(false);
  const progress = startProgress({ label: 'zeta: reading', total: 4096, unit: 'tokens', stream });
  for (const done of [0, 100, 410, 420, 2048, 4096, 4096]) progress.update(done, done === 4096 ? '(1.9 bits/byte)' : '');
  progress.end('done');
  expect(written()).toBe(
    'zeta: reading 10 % (410 of 4,096 tokens)\nzeta: reading 50 % (2,048 of 4,096 tokens)\n' +
      'zeta: reading 100 % (4,096 of 4,096 tokens) (1.9 bits/byte)\nzeta: reading done\n',
  );
});

test('on a terminal there is one bar with count, share and note, and the cursor comes back', () => {
  const { stream, written } = keeper(true);
  const progress = startProgress({ label: 'training', total: 3000, unit: 'steps', stream });
  progress.update(1500);
  progress.end('1.732 bits/byte');
  expect(written()).toContain('training');
  expect(written()).toMatch(/50 % \| 1,500\/3,000 steps \| \d+s 1\.732 bits\/byte/);
  expect(written()).toContain('\u001B[?25l');
  expect(written().lastIndexOf('\u001B[?25h')).toBeGreaterThan(written().lastIndexOf('\u001B[?25l'));
});

test('the note of a training step names every figure with its unit', () => {
  expect(trainingNote({ bits: 1.7321, heldOutBits: 1.8, learningRate: 2.94e-4, tokensPerSecond: 120_394.2 })).toBe(
    '1.732 bits/byte (held out 1.800), lr 2.9e-4, 120,394 tokens/s',
  );
  expect(trainingNote({ bits: 8, learningRate: 1e-3, tokensPerSecond: 10 })).toBe('8.000 bits/byte, lr 1.0e-3, 10 tokens/s');
});
