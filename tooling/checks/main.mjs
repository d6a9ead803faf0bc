// `npm test` after the set-up: every stage runs, also after a failure; the last line is the sum.
// Options: --only a,b runs these stages, --list names them.
import { Stop } from '../setup/steps.mjs';
import { browser } from './browser.mjs';
import { demo } from './demo.mjs';
import { golden } from './golden.mjs';
import { sizes } from './sizes.mjs';
import { format, lint, types, unit } from './source.mjs';
import { tarballs } from './tarballs.mjs';

/** @typedef {import('./result.mjs').Count} Count */
/** @type {Record<string, () => Promise<Count>>} */
const STAGES = { types, lint, format, unit, golden, sizes, tarballs, browser, demo };

async function main() {
  const args = process.argv.slice(2);
  if (args.includes('--list')) return console.log(Object.keys(STAGES).join('\n'));
  const only = args.indexOf('--only');
  const names = only < 0 ? Object.keys(STAGES) : (args[only + 1] ?? '').split(',');

  /** @type {Count & { lines: string[] }} */
  const sum = { passed: 0, failed: 0, lines: [] };
  for (const name of names) {
    const stage = STAGES[name];
    if (!stage) throw new Stop(`test: no stage is named "${name}"; use --only with names from --list`);
    console.log(`\n== ${name}`);
    const started = Date.now();
    const { passed, failed } = await stage().catch((error) => {
      console.error(error);
      return { passed: 0, failed: 1 };
    });
    sum.passed += passed;
    sum.failed += failed;
    sum.lines.push(
      `${name.padEnd(10)} ${String(passed).padStart(6)} passed ${String(failed).padStart(4)} failed ${((Date.now() - started) / 1000).toFixed(1).padStart(8)} s`,
    );
  }
  console.log(`\n${sum.lines.join('\n')}`);
  console.log(`${sum.passed} passed, ${sum.failed} failed`);
  process.exitCode = sum.failed === 0 && sum.passed > 0 ? 0 : 1;
}

main().catch((error) => {
  console.error(error instanceof Stop ? error.message : error);
  process.exitCode = error instanceof Stop ? error.status : 1;
});
