// Steps with visible progress on stderr: a live line on a terminal, a line every ten seconds elsewhere, the whole output in a log file.
import { spawn } from 'node:child_process';
import { createWriteStream, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { root } from './root.mjs';

/** An end with a plain explanation: printed as it is, without a stack. */
export class Stop extends Error {
  /** @param {string} message @param {number} [status] 2 means that the machine or the request has to change, 1 that something failed */
  constructor(message, status = 2) {
    super(message);
    this.status = status;
  }
}

const logs = join(root, '.heed', 'logs');
const seconds = (/** @type {number} */ since) => `${((Date.now() - since) / 1000).toFixed(1)} s`;

/** @param {string} title @param {string} result */
export function note(title, result) {
  console.error(`  ${title.padEnd(34)} ${result}`);
}

/**
 * Runs one command as a step.
 * @param {string} title
 * @param {string[]} command program and arguments
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string }} [options]
 * @returns {Promise<void>} rejects with Stop when the command fails
 */
export async function step(title, [program, ...args], { env = process.env, cwd = root } = {}) {
  mkdirSync(logs, { recursive: true });
  const logPath = join(logs, `${title.replace(/[^a-z0-9]+/gi, '-').toLowerCase()}.log`);
  const log = createWriteStream(logPath);
  const started = Date.now();
  const live = Boolean(process.stderr.isTTY);
  /** @type {string[]} */
  const lines = [];
  let printed = started;

  const show = () => {
    const last = lines.at(-1) ?? '';
    if (live) {
      const width = Math.max(40, (process.stderr.columns ?? 100) - 1);
      process.stderr.write(`\r\x1b[2K${`  ${title.padEnd(34)} ${seconds(started)}  ${last}`.slice(0, width)}`);
    } else if (Date.now() - printed >= 10_000) {
      printed = Date.now();
      note(title, `... ${seconds(started)}  ${last.slice(0, 100)}`);
    }
  };
  if (!live) note(title, '...');
  const timer = setInterval(show, live ? 150 : 1000);

  const status = await new Promise((resolve, reject) => {
    const child = spawn(/** @type {string} */ (program), args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
    let rest = '';
    const take = (/** @type {Buffer} */ chunk) => {
      log.write(chunk);
      const parts = (rest + chunk.toString('utf8')).split(/[\r\n]+/);
      rest = parts.pop() ?? '';
      for (const part of parts) {
        const line = stripVTControlCharacters(part).trim();
        if (line) lines.push(line);
      }
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (rest.trim()) lines.push(stripVTControlCharacters(rest).trim());
      resolve(code ?? signal);
    });
  }).finally(() => {
    clearInterval(timer);
    log.end();
    if (live) process.stderr.write('\r\x1b[2K');
  });

  if (status !== 0) {
    throw new Stop(
      [
        `${title}: ${program} ${args.join(' ')} ended with ${status}; its last lines:`,
        ...lines.slice(-40),
        `the whole output is in ${logPath}`,
      ].join('\n'),
      1,
    );
  }
  note(title, `done in ${seconds(started)}`);
}
