// Checks on sources: types, lint, format and the unit tests of all packages.
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../setup/root.mjs';
import { bin, turbo, turboEnvironment } from '../setup/workspace.mjs';
import { Tally, run } from './result.mjs';

/** @typedef {import('./result.mjs').Count} Count */

/** @param {string} name @param {string[]} command @returns {Promise<Count>} */
async function one(name, command, env = process.env) {
  const tally = new Tally();
  const { status } = await run(command, { env });
  tally.add(name, status === 0, status === 0 ? '' : `exit status ${status}`);
  return tally.count;
}

export const types = () => one('sources, tests and type tests compile', turbo('typecheck'), turboEnvironment());
export const lint = () => one('oxlint', bin('node_modules/oxlint', 'bin/oxlint'));
export const format = () => one('oxfmt', [...bin('node_modules/oxfmt', 'bin/oxfmt'), '--check', '.']);

/** @returns {Promise<Count>} */
export async function unit() {
  const folder = join(root, '.heed');
  const report = join(folder, 'vitest.json');
  mkdirSync(folder, { recursive: true });
  rmSync(report, { force: true });
  const vitest = bin('tooling/node_modules/vitest', 'vitest.mjs');
  const { status } = await run([
    ...vitest,
    'run',
    '--root',
    root,
    '--config',
    'tooling/vitest/all.mjs',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${report}`,
  ]);
  if (!existsSync(report)) throw new Error(`vitest ended with ${status} and wrote no report`);
  /** @type {{ numPassedTests: number, numFailedTests: number, numPendingTests: number, numTodoTests: number, numFailedTestSuites: number, testResults: { status: string, assertionResults: unknown[] }[] }} */
  const result = JSON.parse(readFileSync(report, 'utf8'));
  // A file that does not load has no test of its own; a skipped test is no passed one.
  const broken = result.testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0).length;
  const skipped = result.numPendingTests + result.numTodoTests;
  if (skipped > 0) console.log(`  FAIL  ${skipped} tests were skipped; the suite has none to skip`);
  const failed = result.numFailedTests + broken + skipped;
  return { passed: result.numPassedTests, failed: status !== 0 && failed === 0 ? 1 : failed };
}
