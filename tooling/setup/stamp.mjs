// What the last set-up was made from: when nothing of it changed, the work is not repeated.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { root } from './root.mjs';

const folder = join(root, '.heed');
const SKIPPED = new Set(['node_modules', 'dist', '.tsbuild', '.turbo', '.git', '.heed', '.gpu', 'test']);

/** @param {string} path @returns {string[]} files below, sorted */
function filesBelow(path) {
  return readdirSync(path, { withFileTypes: true })
    .filter((entry) => !SKIPPED.has(entry.name))
    .flatMap((entry) => (entry.isDirectory() ? filesBelow(join(path, entry.name)) : [join(path, entry.name)]))
    .sort();
}

/** @param {string[]} paths files or folders @param {string[]} [extra] */
function hashOf(paths, extra = []) {
  const hash = createHash('sha256');
  for (const word of extra) hash.update(`${word}\0`);
  for (const path of paths)
    hash
      .update(`${relative(root, path)}\0`)
      .update(readFileSync(path))
      .update('\0');
  return hash.digest('hex');
}

/** What decides the installed packages. */
export function dependencyKey() {
  const manifests = ['packages', 'apps']
    .flatMap((name) => readdirSync(join(root, name)).map((dir) => join(root, name, dir, 'package.json')))
    .filter((path) => existsSync(path));
  const files = ['pnpm-lock.yaml', 'pnpm-workspace.yaml', 'package.json', 'tooling/package.json'].map((name) => join(root, name));
  return hashOf([...files, ...manifests], [process.platform, process.arch]);
}

/** What decides the built files. */
export function buildKey() {
  const sources = ['packages', 'apps', 'tooling'].flatMap((name) => filesBelow(join(root, name)));
  return hashOf(
    sources.filter((path) => /\.(m?ts|json)$/.test(path)),
    [dependencyKey()],
  );
}

/** @param {string} name @param {string} key */
export function isStamped(name, key) {
  const path = join(folder, `${name}.stamp`);
  return existsSync(path) && readFileSync(path, 'utf8') === key;
}

/** @param {string} name @param {string} key */
export function writeStamp(name, key) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.stamp`), key);
}
