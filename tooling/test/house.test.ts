import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { root } from '../setup/root.mjs';
import { importsOf, sources } from './imports.js';

/** Core, floor by floor: a folder imports only its own floor's list up to itself. */
const FLOORS = [
  ['errors.ts', 'dtype.ts', 'float64.ts', 'random'],
  ['device'],
  ['kernel'],
  ['tensor'],
  ['autodiff'],
  ['ops'],
  ['attention', 'seams', 'cache'],
  ['nn', 'optim'],
  ['io'],
  ['testing'],
] as const;

const packages = readdirSync(join(root, 'packages')).sort();
const techniques = packages.filter((name) => name !== 'core');
const folderOf = (file: string, above: string): string => file.slice(above.length).split('/')[0] ?? '';
const floorOf = (name: string): number => FLOORS.findIndex((floor) => (floor as readonly string[]).includes(name.replace(/\.js$/, '.ts')));

interface Manifest {
  name: string;
  exports: Record<string, string | Record<string, string>>;
  publishConfig: { exports: Record<string, string | Record<string, string>> };
  sideEffects: boolean;
  dependencies?: Record<string, string>;
}
const manifest = (name: string): Manifest => JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8')) as Manifest;

test('each floor of core imports only its own and lower floors', () => {
  const above = 'packages/core/src/';
  const files = sources('packages/core/src').filter((file) => !/src\/(index|internal)\.ts$/.test(file));
  const unknown = [...new Set(files.map((file) => folderOf(file, above)))].filter((folder) => floorOf(folder) < 0);
  expect(unknown, 'folders of core without a floor: add them to FLOORS').toEqual([]);

  const upward = files.flatMap((file) =>
    importsOf(file)
      .filter(({ target }) => target !== undefined && floorOf(folderOf(target, above)) > floorOf(folderOf(file, above)))
      .map(({ target }) => `${file} imports ${target}`),
  );
  expect(upward).toEqual([]);
});

test('nn and optim stand on one floor and do not import each other', () => {
  const other = { nn: 'packages/core/src/optim/', optim: 'packages/core/src/nn/' };
  const sideways = (['nn', 'optim'] as const).flatMap((floor) =>
    sources(`packages/core/src/${floor}`)
      .flatMap(importsOf)
      .filter(({ target }) => target?.startsWith(other[floor]))
      .map(({ file, target }) => `${file} imports ${target}`),
  );
  expect(sideways).toEqual([]);
});

test.each(techniques)('@heed/%s imports @heed/core and nothing else', (name) => {
  const foreign = sources(`packages/${name}/src`)
    .flatMap(importsOf)
    .filter(({ specifier, target }) =>
      target === undefined ? !/^@heed\/core(\/|$)/.test(specifier) : !target.startsWith(`packages/${name}/src/`),
    )
    .map(({ file, specifier }) => `${file} imports ${specifier}`);
  expect(foreign).toEqual([]);
  expect(Object.keys(manifest(name).dependencies ?? {})).toEqual([]);
});

test.each(techniques)('no technique of @heed/%s imports another one', (name) => {
  const above = `packages/${name}/src/`;
  const slugs = Object.keys(manifest(name).exports)
    .map((key) => key.slice(2))
    .filter((key) => key && key !== 'package.json');
  const crossed = slugs.flatMap((slug) =>
    sources(`${above}${slug}`)
      .flatMap(importsOf)
      .filter(({ target }) => target !== undefined && slugs.some((other) => other !== slug && folderOf(target, above) === other))
      .map(({ file, target }) => `${file} imports ${target}`),
  );
  expect(slugs.length).toBeGreaterThan(0);
  expect(crossed).toEqual([]);
});

test.each(packages)('@heed/%s loads Node modules and webgpu only inside functions', (name) => {
  const fixed = sources(`packages/${name}/src`).flatMap((file) => {
    const text = readFileSync(join(root, file), 'utf8');
    return [...text.matchAll(/^\s*(?:import|export)\s+(?!type\b)[^;'"]*['"](node:[^'"]+|webgpu)['"]/gm)].map(
      (match) => `${file} imports ${match[1]}`,
    );
  });
  expect(fixed).toEqual([]);
});

test.each(packages)('relative imports of @heed/%s end in .js', (name) => {
  const bare = [...sources(`packages/${name}/src`), ...sources(`packages/${name}/test`)]
    .flatMap(importsOf)
    .filter(({ specifier, target }) => target !== undefined && !/\.m?js(on)?$/.test(specifier))
    .map(({ file, specifier }) => `${file} imports ${specifier}`);
  expect(bare).toEqual([]);
});

test.each(packages)('the entries of @heed/%s exist, and are published as they are declared', (name) => {
  const { exports, publishConfig, sideEffects } = manifest(name);
  expect(sideEffects).toBe(false);
  for (const [entry, target] of Object.entries(exports)) {
    if (typeof target === 'string') {
      expect(publishConfig.exports[entry]).toBe(target);
      continue;
    }
    const { '@heed/source': source = '', ...published } = target;
    expect(existsSync(join(root, 'packages', name, source)), `${entry}: ${source} exists`).toBe(true);
    const built = source.replace('./src/', './dist/').replace(/\.ts$/, '');
    expect(published).toEqual({ types: `${built}.d.ts`, default: `${built}.js` });
    expect(publishConfig.exports[entry]).toEqual(published);
  }
  expect(Object.keys(publishConfig.exports)).toEqual(Object.keys(exports));
});

test.each(packages)('@heed/%s carries the licence of the workspace', (name) => {
  expect(readFileSync(join(root, 'packages', name, 'LICENSE'), 'utf8')).toBe(readFileSync(join(root, 'LICENSE'), 'utf8'));
});

/** Places of `defineKernel(` in a source, with the comments between each and the kernel before it, or the file's first line. */
function kernelsOf(file: string): { file: string; line: number; name: string; comments: string }[] {
  const lines = readFileSync(join(root, file), 'utf8').split('\n');
  let from = 0;
  return lines.flatMap((line, at) => {
    if (!/(?<!function )\bdefineKernel(<.*>)?\((\{|$)/.test(line)) return [];
    const before = lines.slice(from, at + 1);
    from = at + 1;
    const name = /name: ['`]([^'`]+)/.exec(`${line} ${lines[at + 1]}`)?.[1] ?? 'a kernel';
    return [{ file, line: at + 1, name, comments: before.filter((text) => /^\s*(\/\/|\*|\/\*\*)/.test(text)).join('\n') }];
  });
}

test('each kernel says its tile and its bytes ahead of its definition', () => {
  const kernels = packages.flatMap((name) => sources(`packages/${name}/src`).flatMap(kernelsOf));
  expect(kernels.length).toBeGreaterThan(100);
  const silent = kernels.flatMap(({ file, line, name, comments }) => {
    const missing = ['tile', 'bytes'].filter((word) => !new RegExp(`^\\s*// ${word} {2,}\\S`, 'm').test(comments));
    return missing.length === 0 ? [] : [`${file}:${line}: ${name} does not say its ${missing.join(' and its ')}`];
  });
  expect(silent, 'a comment before the kernel: `// tile    ...` and `// bytes   ...`, counted from the code').toEqual([]);
});
