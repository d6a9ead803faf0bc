// Dependencies and build: pnpm comes through npm, everything else through pnpm.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './root.mjs';
import { buildKey, dependencyKey, isStamped, writeStamp } from './stamp.mjs';
import { Stop, note, step } from './steps.mjs';

const PNPM = 'pnpm@10.34.9';

/** The runner of golden cases, relative to the root. */
export const GOLDEN = 'tooling/golden/main.mjs';

/** npm as a command of this Node: the script that `npm run` came from, or the npm on the path. */
function npmExec() {
  const script = process.env.npm_execpath;
  if (script?.endsWith('npm-cli.js')) return [process.execPath, script, 'exec'];
  return [process.platform === 'win32' ? 'npm.cmd' : 'npm', 'exec'];
}

/** The program of an installed package's `bin`, run by this Node. @param {string} packagePath @param {string} script */
export const bin = (packagePath, script) => [process.execPath, join(root, packagePath, script)];

export function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  throw new Stop(
    `setup: this is Node ${process.versions.node}; the workspace needs Node 20.19 or newer, install it and run the command again`,
  );
}

export async function installDependencies() {
  const key = dependencyKey();
  if (isStamped('dependencies', key) && existsSync(join(root, 'node_modules', '.pnpm'))) return note('dependencies', 'up to date');
  const environment = { ...process.env, CI: 'true', npm_config_update_notifier: 'false' };
  await step(
    'dependencies',
    [...npmExec(), '--yes', `--package=${PNPM}`, '--', 'pnpm', 'install', '--frozen-lockfile', '--reporter=append-only'],
    {
      env: environment,
    },
  );
  writeStamp('dependencies', key);
}

/** Variables under which turbo runs: no telemetry, no daemon, and the pnpm of node_modules on the path. */
export function turboEnvironment(/** @type {NodeJS.ProcessEnv} */ base = process.env) {
  const separator = process.platform === 'win32' ? ';' : ':';
  const path = [join(root, 'node_modules', '.bin'), base.PATH ?? ''].join(separator);
  return { ...base, PATH: path, TURBO_TELEMETRY_DISABLED: '1', DO_NOT_TRACK: '1' };
}

/** @param {...string} args */
export const turbo = (...args) => [
  process.execPath,
  join(root, 'node_modules', 'turbo', 'bin', 'turbo'),
  'run',
  ...args,
  '--output-logs=new-only',
  '--log-order=grouped',
];

/**
 * Builds what an app needs, or everything.
 * @param {string} [app] folder below apps
 */
export async function build(app) {
  const key = buildKey();
  const entry = app ? `apps/${app}/dist/main.js` : 'packages/core/dist/index.js';
  const done = ['build', ...(app ? [`build-${app}`] : [])].some((stamp) => isStamped(stamp, key));
  if (done && existsSync(join(root, entry))) return note('build', 'up to date');
  await step('build', turbo('build', ...(app ? [`--filter=@heed/${app}...`] : [])), { env: turboEnvironment() });
  writeStamp(app ? `build-${app}` : 'build', key);
}
