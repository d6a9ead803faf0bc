// The golden cases that the packages ship, through the same command that `npm run golden` gives to people.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../setup/root.mjs';
import { run } from './result.mjs';

/** The folder of each package that a tier runs: matrix forms take f16 operands, which the papers' cases do not have. */
/** What is run on each tier: matrix kernels take f16 operands, so they have cases of their own. */
const RUNS = [
  { tier: 'baseline', folder: 'cases' },
  { tier: 'subgroups', folder: 'cases' },
  { tier: 'matrix', folder: 'matrix-cases' },
];

/** @returns {Promise<import('./result.mjs').Count>} */
export async function golden() {
  const count = { passed: 0, failed: 0 };
  for (const { tier, folder } of RUNS) {
    console.log(`-- tier ${tier}`);
    // Sub-folders hold cases of ops that no package has yet; tests of core read those themselves.
    const files = readdirSync(join(root, 'packages'))
      .map((name) => join('packages', name, 'test', folder))
      .filter((path) => existsSync(join(root, path)))
      .flatMap((path) =>
        readdirSync(join(root, path))
          .filter((name) => name.endsWith('.safetensors'))
          .map((name) => join(path, name)),
      );
    const { status, output } = await run([process.execPath, join(root, 'tooling/golden/main.mjs'), ...files, '--tier', tier]);
    const words = output.split('\n').map((line) => line.split(/\s+/)[0]);
    const passed = words.filter((word) => word === 'pass').length;
    const failed = words.filter((word) => word === 'fail' || word === 'unsupported' || word === 'fell-back').length;
    count.passed += passed;
    count.failed += status !== 0 && failed === 0 ? 1 : failed;
  }
  return count;
}
