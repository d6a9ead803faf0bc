// The packages as users get them: packed, inspected, installed into an empty project, and their README examples run there as pasted.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, realpathSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from '../setup/root.mjs';
import { bin } from '../setup/workspace.mjs';
import { serveTarballs } from './registry.mjs';
import { Tally, run } from './result.mjs';

/** @typedef {{ folder: string, path: string, manifest: { name: string, version: string, exports: Record<string, unknown> } }} Tarball */

const packed = join(root, '.heed', 'packed');
const pnpm = () => bin('node_modules/pnpm', 'bin/pnpm.cjs');

/** npm of this machine, as a command. */
function npm() {
  const script = process.env.npm_execpath;
  return script?.endsWith('npm-cli.js') ? [process.execPath, script] : [process.platform === 'win32' ? 'npm.cmd' : 'npm'];
}

/** An environment without the settings that `npm run` hands down. */
function plainEnvironment() {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name) && name !== 'INIT_CWD'));
}

/** @param {string[]} command @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} [options] @returns {Promise<string>} */
async function must(command, options) {
  const { status, output } = await run(command, { ...options, quiet: true, timeout: 300_000 });
  if (status !== 0) throw new Error(`${command.slice(1).join(' ')} ended with ${status}: ${output.trim().split('\n').at(-1) ?? ''}`);
  return output;
}

/** Code blocks of a README that are meant to run. @param {string} path */
export function examplesOf(path) {
  const text = readFileSync(path, 'utf8');
  return [...text.matchAll(/^```(?:js|javascript|mjs)\n([\s\S]*?)^```/gm)].map((match) => match[1] ?? '');
}

/** @param {Tally} tally @param {string} folder @returns {Promise<Tarball | undefined>} */
async function pack(tally, folder) {
  const cwd = join(root, 'packages', folder);
  /** @type {Tarball | undefined} */
  let tarball;
  await tally.check(`@heed/${folder} packs`, async () => {
    /** @type {{ filename: string, files: { path: string }[] }} */
    const report = JSON.parse(await must([...pnpm(), 'pack', '--json', '--pack-destination', packed], { cwd }));
    const files = report.files.map(({ path }) => path);
    const odd = files.filter((path) => !/^(dist\/.*\.(js|js\.map|d\.ts)|README\.md|LICENSE|package\.json)$/.test(path));
    if (odd.length > 0) throw new Error(`it contains ${odd.slice(0, 5).join(', ')}`);
    for (const needed of ['README.md', 'LICENSE', 'package.json', 'dist/index.js', 'dist/index.d.ts']) {
      if (!files.includes(needed)) throw new Error(`${needed} is missing`);
    }
    const path = report.filename.startsWith('/') ? report.filename : join(packed, report.filename);
    const manifest = JSON.parse(await must(['tar', '-xzOf', path, 'package/package.json']));
    if (/workspace:|catalog:|@heed\/source/.test(JSON.stringify({ ...manifest, devDependencies: {} })))
      throw new Error('its package.json still speaks of the workspace');
    tarball = { folder, path, manifest };
    return `${files.length} files`;
  });
  return tarball;
}

/** @param {Tally} tally @param {Tarball} tarball */
async function inspect(tally, { folder, path }) {
  const modules = 'tooling/node_modules';
  await tally.check(
    `@heed/${folder} passes publint`,
    async () => void (await must([...bin(`${modules}/publint`, 'src/cli.js'), path, '--strict'])),
  );
  await tally.check(`@heed/${folder} has the right types in every resolution mode of ESM`, async () => {
    await must([...bin(`${modules}/@arethetypeswrong/cli`, 'dist/index.js'), path, '--profile', 'esm-only', '--no-color']);
  });
}

/**
 * An empty project outside of the workspace, with the packages installed by npm as the README says.
 * @param {string} url our registry
 * @param {string[]} names
 */
async function project(url, names) {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'heed-project-')));
  writeFileSync(join(folder, 'package.json'), '{ "name": "reader", "version": "1.0.0", "private": true, "type": "module" }\n');
  writeFileSync(join(folder, '.npmrc'), `@heed:registry=${url}\naudit=false\nfund=false\nupdate-notifier=false\n`);
  // webgpu is the workspace's own copy: the same files, without a download of them.
  const webgpu = realpathSync(join(root, 'packages/core/node_modules/webgpu'));
  await must([...npm(), 'install', '--prefer-offline', ...names, webgpu], { cwd: folder, env: plainEnvironment() });
  return folder;
}

/** @param {Tally} tally @param {Tarball} tarball @param {string} url */
async function use(tally, { folder, manifest }, url) {
  /** @type {string | undefined} */
  let reader;
  await tally.check(`npm i ${manifest.name} webgpu gives one copy of @heed/core`, async () => {
    reader = await project(url, [manifest.name]);
    const copies = readdirSync(join(reader, 'node_modules/@heed'));
    const expected = [...new Set(['core', folder])].sort();
    if (copies.sort().join() !== expected.join()) throw new Error(`installed were ${copies.join(', ')}, expected ${expected.join(', ')}`);
    if (existsSync(join(reader, 'node_modules/@heed', folder, 'node_modules'))) throw new Error('it brought a second copy of a dependency');
  });
  if (!reader) return;
  const cwd = reader;

  await tally.check(`every entry of ${manifest.name} loads in plain Node`, async () => {
    const names = Object.keys(manifest.exports)
      .filter((key) => key !== './package.json')
      .map((key) => `${manifest.name}${key.slice(1)}`);
    const text = names.map((name) => `if (Object.keys(await import('${name}')).length === 0) throw new Error('${name} exports nothing');`);
    writeFileSync(join(cwd, 'entries.mjs'), `${text.join('\n')}\n`);
    await must([process.execPath, 'entries.mjs'], { cwd });
  });

  const readmes = [join(root, 'packages', folder, 'README.md'), ...(folder === 'linear' ? [join(root, 'README.md')] : [])];
  for (const readme of readmes) {
    const title = readme.slice(root.length + 1);
    const examples = examplesOf(readme);
    if (examples.length === 0) tally.add(`${title} has an example`, false, 'no ```js block');
    for (const [index, example] of examples.entries()) {
      await tally.check(`example ${index + 1} of ${title} runs as pasted`, async () => {
        writeFileSync(join(cwd, 'example.mjs'), example);
        const output = await must([process.execPath, 'example.mjs'], { cwd });
        if (!output.trim()) throw new Error('it prints nothing');
      });
      await tally.check(`example ${index + 1} of ${title} type-checks in an empty project`, async () => {
        writeFileSync(join(cwd, 'example.mts'), example);
        const flags = [
          '--noEmit',
          '--strict',
          '--target',
          'es2022',
          '--module',
          'nodenext',
          '--lib',
          'es2022,dom,esnext.disposable',
          '--types',
          '',
        ];
        await must([process.execPath, join(root, 'node_modules/typescript/bin/tsc'), ...flags, '--ignoreConfig', 'example.mts'], { cwd });
      });
    }
  }
  await tally.check(`without webgpu the example of ${manifest.name} says what to install`, async () => {
    renameSync(join(cwd, 'node_modules/webgpu'), join(cwd, 'node_modules/.webgpu'));
    writeFileSync(join(cwd, 'example.mjs'), examplesOf(/** @type {string} */ (readmes[0]))[0] ?? '');
    const { status, output } = await run([process.execPath, 'example.mjs'], { cwd, hidden: true, timeout: 60_000 });
    if (status === 0 || !/npm i .*webgpu/.test(output)) throw new Error(`it ended with ${status}: ${output.trim().split('\n').at(-1)}`);
  });
  rmSync(cwd, { recursive: true, force: true });
}

/** Pages of the documentation, relative to the root. */
function pages() {
  return ['guide', 'techniques'].flatMap((name) =>
    readdirSync(join(root, 'docs', name))
      .filter((file) => file.endsWith('.md'))
      .map((file) => join('docs', name, file)),
  );
}

/** The examples of the documentation, in a project that has every package. @param {Tally} tally @param {Tarball[]} all @param {string} url */
async function documentation(tally, all, url) {
  const cwd = await project(
    url,
    all.map(({ manifest }) => manifest.name),
  );
  for (const page of pages()) {
    for (const [index, example] of examplesOf(join(root, page)).entries()) {
      await tally.check(`example ${index + 1} of ${page} runs as pasted`, async () => {
        writeFileSync(join(cwd, 'example.mjs'), example);
        if (!(await must([process.execPath, 'example.mjs'], { cwd })).trim()) throw new Error('it prints nothing');
      });
    }
  }
  rmSync(cwd, { recursive: true, force: true });
}

/** @returns {Promise<import('./result.mjs').Count>} */
export async function tarballs() {
  const tally = new Tally();
  rmSync(packed, { recursive: true, force: true });
  mkdirSync(packed, { recursive: true });
  /** @type {Tarball[]} */
  const all = [];
  for (const folder of readdirSync(join(root, 'packages')).sort()) {
    const tarball = await pack(tally, folder);
    if (tarball) all.push(tarball);
  }
  for (const tarball of all) await inspect(tally, tarball);
  const registry = await serveTarballs(all);
  try {
    for (const tarball of all) await use(tally, tarball, registry.url);
    await documentation(tally, all, registry.url);
  } finally {
    await registry.close();
  }
  return tally.count;
}
