// The main job as people start it, on a short piece of text: it ends well, writes its report, and answers bad requests in a sentence.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from '../setup/root.mjs';
import { Tally, run } from './result.mjs';

const MODELS = ['softmax', 'lightning2', 'neighborhood', 'zeta'];

/** @returns {Promise<import('./result.mjs').Count>} */
export async function demo() {
  const tally = new Tally();
  const cwd = mkdtempSync(join(tmpdir(), 'heed-demo-'));
  const command = [process.execPath, join(root, 'apps/demo/dist/main.js')];

  await tally.check('the demo reads a text with all four models', async () => {
    const { status, output } = await run([...command, '--tokens', '192', '--continue', '8', '--json', 'record.json'], {
      cwd,
      hidden: true,
      timeout: 300_000,
    });
    if (status !== 0) throw new Error(`it ended with ${status}: ${output.trim().split('\n').at(-1)}`);
    const record = readFileSync(join(cwd, 'record.json'), 'utf8');
    const report = readFileSync(join(cwd, 'report.html'), 'utf8');
    const missing = MODELS.filter((model) => ![record, report, output].every((text) => text.includes(model)));
    if (missing.length > 0) throw new Error(`${missing.join(', ')} is missing in the record, the report or the table`);
    if (/(src|href)="https?:/.test(report)) throw new Error('report.html loads something from elsewhere');
  });

  writeFileSync(join(cwd, 'empty.txt'), '');
  writeFileSync(
    join(cwd, 'binary.bin'),
    Uint8Array.from({ length: 4096 }, (_, i) => (i * 37) % 256),
  );
  const wrong = {
    'a missing file': ['--text', 'nothing.txt'],
    'an empty file': ['--text', 'empty.txt'],
    'a binary file': ['--text', 'binary.bin'],
    'an unknown model': ['--models', 'recurrent'],
    'more tokens than memory holds': ['--tokens', '100000000000'],
    'an unknown option': ['--speed', '11'],
  };
  for (const [name, args] of Object.entries(wrong)) {
    await tally.check(`${name} gets a sentence and exit status 2`, async () => {
      const { status, output } = await run([...command, ...args], { cwd, hidden: true, timeout: 120_000 });
      if (status !== 2 || /\n\s+at .*:\d+:\d+/.test(output) || !output.trim())
        throw new Error(`it ended with ${status}: ${output.trim().slice(0, 200)}`);
    });
  }
  rmSync(cwd, { recursive: true, force: true });
  return tally.count;
}
