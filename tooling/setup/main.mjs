// The front door of `npm run demo`, `npm test` and the other root scripts: sets up what is missing, then runs the command.
// Plain Node without dependencies, since on a bare machine there is nothing else yet.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ensureAdapter } from './adapter.mjs';
import { ensureChromium } from './chromium.mjs';
import { root } from './root.mjs';
import { Stop } from './steps.mjs';
import { build, checkNode, installDependencies } from './workspace.mjs';

/**
 * What runs after the set-up, relative to the root: an app, which is built with what it needs, or a script. `sources`: it reads
 * sources and needs no build; otherwise everything is built.
 * @type {Record<string, { app?: string, script?: string, browser?: boolean, sources?: boolean }>}
 */
const COMMANDS = {
  setup: {},
  demo: { app: 'demo' },
  lab: { app: 'lab' },
  bench: { app: 'bench' },
  golden: { script: 'tooling/golden/main.mjs', sources: true },
  test: { script: 'tooling/checks/main.mjs', browser: true },
};

/** @param {string} path @param {string[]} args @param {NodeJS.ProcessEnv} env @returns {Promise<number>} */
function run(path, args, env) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [path, ...args], { cwd: process.env.INIT_CWD ?? process.cwd(), env, stdio: 'inherit' });
    // The child gets Ctrl-C too, and ends in its own way.
    process.on('SIGINT', () => {});
    child.on('error', reject);
    child.on('close', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 1)));
  });
}

async function main() {
  const [name = '', ...args] = process.argv.slice(2);
  const command = COMMANDS[name];
  if (!command) throw new Stop(`setup: unknown command "${name}"; use one of ${Object.keys(COMMANDS).join(', ')}`);
  console.error('heed: set-up');
  checkNode();
  await installDependencies();
  const environment = { ...process.env, ...(await ensureAdapter()) };
  if (command.browser) environment.HEED_CHROMIUM = await ensureChromium();
  if (!command.sources) await build(command.app);
  console.error('');
  const script = command.app ? `apps/${command.app}/dist/main.js` : command.script;
  if (!script) return 0;
  const path = join(root, script);
  if (!existsSync(path)) throw new Stop(`setup: ${script} is missing after the build; run npm run build and read its output`, 1);
  return run(path, args, environment);
}

main().then(
  (status) => {
    process.exitCode = status;
  },
  (error) => {
    console.error(error instanceof Stop ? error.message : error);
    process.exitCode = error instanceof Stop ? error.status : 1;
  },
);
