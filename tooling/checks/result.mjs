// What a check gives back, and how commands are run by checks.
import { spawn } from 'node:child_process';
import { root } from '../setup/root.mjs';

/** @typedef {{ passed: number, failed: number }} Count */

/**
 * Runs a command and shows its output.
 * @param {string[]} command program and arguments
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string, quiet?: boolean, hidden?: boolean, timeout?: number }} [options] `quiet` shows the output only on failure, `hidden` never
 * @returns {Promise<{ status: number, output: string }>}
 */
export function run([program, ...args], { env = process.env, cwd = root, quiet = false, hidden = false, timeout = 0 } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(/** @type {string} */ (program), args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'], timeout });
    let output = '';
    const take = (/** @type {Buffer} */ chunk) => {
      output += chunk.toString('utf8');
      if (!quiet && !hidden) process.stdout.write(chunk);
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.on('error', reject);
    child.on('close', (code) => {
      if (quiet && code !== 0) process.stdout.write(output);
      resolve({ status: code ?? 1, output });
    });
  });
}

/** Counts named checks and prints a line for each. */
export class Tally {
  /** @type {Count} */
  count = { passed: 0, failed: 0 };

  /** @param {string} name @param {boolean} passed @param {string} [detail] what went wrong, or a figure */
  add(name, passed, detail = '') {
    this.count[passed ? 'passed' : 'failed']++;
    console.log(`  ${passed ? 'pass' : 'FAIL'}  ${name}${detail ? `: ${detail}` : ''}`);
  }

  /** Runs a check that throws when it fails; what it returns is printed as its figure. @param {string} name @param {() => Promise<string | void>} check */
  async check(name, check) {
    try {
      this.add(name, true, (await check()) ?? '');
    } catch (error) {
      this.add(name, false, error instanceof Error ? error.message : String(error));
    }
  }
}
