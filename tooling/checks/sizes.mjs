// The size of every published entry in a browser bundle, against the budgets of sizes.json; and that what is not imported is not bundled.
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { root } from '../setup/root.mjs';
import { Tally } from './result.mjs';

/** @type {Record<string, number>} entry -> most bytes, minified and gzipped */
const budgets = JSON.parse(readFileSync(join(root, 'tooling/checks/sizes.json'), 'utf8'));

/**
 * Bundles a module text as an app for browsers would.
 * @param {string} contents
 * @param {string[]} [external]
 */
export async function bundle(contents, external = []) {
  const result = await build({
    stdin: { contents, resolveDir: join(root, 'tooling'), loader: 'js' },
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    write: false,
    metafile: true,
    logLevel: 'silent',
    external: ['webgpu', 'node:*', ...external],
  });
  const [output] = Object.values(result.metafile.outputs);
  const text = result.outputFiles[0]?.text ?? '';
  const used = Object.entries(output?.inputs ?? {}).filter(([, { bytesInOutput }]) => bytesInOutput > 0);
  return { text, bytes: gzipSync(text, { level: 9 }).length, inputs: used.map(([path]) => path) };
}

/** Entries of the published packages: `@heed/core`, `@heed/core/nn`, ... */
export function entries() {
  return readdirSync(join(root, 'packages'))
    .sort()
    .flatMap((name) => {
      const manifest = JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8'));
      return Object.keys(manifest.exports)
        .filter((key) => key !== './package.json')
        .map((key) => ({ family: name, slug: key.slice(2), entry: `${manifest.name}${key.slice(1)}` }));
    });
}

/** @param {boolean} holds @param {string} message @returns {asserts holds} */
function must(holds, message) {
  if (!holds) throw new Error(message);
}

const kilobytes = (/** @type {number} */ bytes) => `${(bytes / 1000).toFixed(1)} kB`;

/** @returns {Promise<import('./result.mjs').Count>} */
export async function sizes() {
  const tally = new Tally();
  for (const { family, slug, entry } of entries()) {
    // Techniques are measured without core, which an app has once; every entry is measured whole, as if all of it were used.
    const external = family === 'core' ? [] : ['@heed/core'];
    await tally.check(`${entry} is within its budget`, async () => {
      const { bytes } = await bundle(`import * as all from '${entry}'; globalThis.all = all;`, external);
      const budget = budgets[entry];
      must(budget !== undefined, `${kilobytes(bytes)}, and no budget in tooling/checks/sizes.json`);
      must(bytes <= budget, `${kilobytes(bytes)} minified and gzipped, over its budget of ${kilobytes(budget)}`);
      return `${kilobytes(bytes)} of ${kilobytes(budget)}`;
    });
    if (family !== 'core' && slug) {
      await tally.check(`${entry} brings no other technique`, async () => {
        const { inputs } = await bundle(`import * as all from '${entry}'; globalThis.all = all;`, external);
        const others = entries().filter((other) => other.family !== 'core' && other.slug && other.entry !== entry);
        const brought = others.filter((other) => inputs.some((path) => path.includes(`packages/${other.family}/dist/${other.slug}/`)));
        must(brought.length === 0, `it bundles ${brought.map((other) => other.entry).join(', ')}`);
      });
    }
    await tally.check(`${entry} has no side effect`, async () => {
      const { text } = await bundle(`import '${entry}';`);
      must(text.trim() === '', `importing it leaves ${text.length} bytes in a bundle: ${text.slice(0, 80)}`);
    });
  }
  await tally.check('kernels that nobody uses stay out of a bundle', async () => {
    const { text, bytes } = await bundle(`import { HeedError } from '@heed/core'; globalThis.HeedError = HeedError;`);
    must(
      !text.includes('@compute') && bytes < 1000,
      `one error class takes ${kilobytes(bytes)}${text.includes('@compute') ? ' and brings WGSL' : ''}`,
    );
    return kilobytes(bytes);
  });
  return tally.count;
}
