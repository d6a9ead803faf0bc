// Packages of Debian and Ubuntu, installed where the set-up may: as root, with apt.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { backportsEntry, hasBackports } from './apt-sources.mjs';
import { Stop, note, step } from './steps.mjs';

const SOURCES = '/etc/apt/sources.list.d';
const environment = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };

/** Debian or a relative of it, with apt, as root. */
export function canInstall() {
  return process.platform === 'linux' && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get') && existsSync('/etc/debian_version');
}

/** @returns {{ path: string, text: string }[]} */
function sourceFiles() {
  const paths = existsSync(SOURCES) ? readdirSync(SOURCES).map((name) => join(SOURCES, name)) : [];
  return [...paths, '/etc/apt/sources.list'].filter((path) => existsSync(path)).map((path) => ({ path, text: readFileSync(path, 'utf8') }));
}

function release() {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const field = (/** @type {string} */ name) => new RegExp(`^${name}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? '';
  return { id: field('ID'), codename: field('VERSION_CODENAME') };
}

/** Major version that a plain install of a package would bring; 0 when apt knows none. @param {string} name */
function candidateMajor(name) {
  const policy = spawnSync('apt-cache', ['policy', name], { encoding: 'utf8', env: environment }).stdout ?? '';
  return Number(/Candidate: (?:\d+:)?(\d+)\./.exec(policy)?.[1] ?? 0);
}

let updated = false;
async function update() {
  await step('apt-get update', ['apt-get', 'update'], { env: environment });
  updated = true;
}

/** @param {string} title @param {string[]} args */
const install = (title, args) => step(title, ['apt-get', 'install', '--yes', '--no-install-recommends', ...args], { env: environment });

/** The software Vulkan driver and the loader; from backports where the release's own Mesa is too old for Dawn. */
export async function installMesa() {
  await update();
  const packages = ['mesa-vulkan-drivers', 'libvulkan1'];
  if (candidateMajor('mesa-vulkan-drivers') >= 23) return install('software Vulkan driver', packages);
  const { id, codename } = release();
  const suite = `${codename}-backports`;
  const files = sourceFiles();
  if (!hasBackports(files, codename)) {
    const entry = id === 'debian' ? backportsEntry(files, codename) : undefined;
    if (!entry) {
      throw new Stop(
        `setup: the packages of ${id} ${codename} have no Mesa 23 or newer, and no apt entry of its main archive was found to derive ${suite} from; install mesa-vulkan-drivers 23 or newer and libvulkan1, then run the command again`,
      );
    }
    const path = join(SOURCES, `heed-${suite}.${entry.format}`);
    writeFileSync(path, entry.text);
    note('apt source', `${path} added, derived from the sources of this machine`);
    await update();
  }
  await install('software Vulkan driver', ['-t', suite, ...packages]);
}

/** @param {string} name a package of the release itself */
export async function installPackage(name) {
  if (!updated) await update();
  await install(name, [name]);
}
