// The golden cases that the packages ship, through the same command that `npm run golden` gives to people.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../setup/root.mjs';
import { run } from './result.mjs';

/** The folder of each package that a tier runs: matrix forms take f16 operands, which the papers' cases do not have. */
const TIERS = { baseline: 'cases', subgroups: 'cases', matrix: 'matrix-cases' };

/** @returns {Promise<import('./result.mjs').Count>} */
export async function golden() {
  const count = { passed: 0, failed: 0 };
  for (const [tier, cases] of Object.entries(TIERS)) {
    const folders = readdirSync(join(root, 'packages'))
      .map((name) => join('packages', name, 'test', cases))
      .filter((folder) => existsSync(join(root, folder)));
    console.log(`-- tier ${tier}`);
    const { status, output } = await run([process.execPath, join(root, 'tooling/golden/main.mjs'), ...folders, '--tier', tier]);
    const words = output.split('\n').map((line) => line.split(/\s+/)[0]);
    const passed = words.filter((word) => word === 'pass').length;
    const failed = words.filter((word) => word === 'fail' || word === 'unsupported' || word === 'fell-back').length;
    count.passed += passed;
    count.failed += status !== 0 && failed === 0 ? 1 : failed;
  }
  return count;
}
