// `npm run golden -- <folder or files...>`: bundles the runner with each package's test/golden.ts, from their sources, and runs that.
// One bundle means one copy of core, so that tensors of a technique are tensors of the runner; it is also what travels to a
// machine without the workspace (`--bundle FILE`).
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const tooling = dirname(dirname(fileURLToPath(import.meta.url)));
const packages = join(dirname(tooling), 'packages');

/** Writes the runner with all mappings as one script; only `webgpu` is left outside. @param {string} outfile */
async function bundle(outfile) {
  const mappings = readdirSync(packages)
    .map((name) => join(packages, name, 'test', 'golden.ts'))
    .filter((path) => existsSync(path));
  const lines = mappings.map((path, i) => `import mapping${i} from ${JSON.stringify(path)};`);
  lines.push(`import { main } from './golden/cli.mjs';`);
  lines.push(`process.exitCode = await main(process.argv.slice(2), [${mappings.map((_, i) => `mapping${i}`).join(', ')}]);`);
  await build({
    stdin: { contents: lines.join('\n'), resolveDir: tooling, sourcefile: 'golden.mjs' },
    outfile,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    conditions: ['@heed/source'],
    external: ['webgpu'],
    sourcemap: 'inline',
    logLevel: 'error',
  });
}

const place = process.argv.indexOf('--bundle');
if (place >= 0) {
  const outfile = process.argv[place + 1];
  if (outfile === undefined) {
    console.error('golden: --bundle was given no file; name the script to write, for instance golden.mjs');
    process.exitCode = 2;
  } else await bundle(resolve(outfile));
} else {
  // Beneath tooling, where `webgpu` resolves; named by process, so that two runs do not share a file.
  const folder = join(tooling, '.tsbuild', 'golden');
  mkdirSync(folder, { recursive: true });
  const script = join(folder, `run-${process.pid}.mjs`);
  try {
    await bundle(script);
    process.setSourceMapsEnabled(true);
    await import(pathToFileURL(script).href);
  } finally {
    rmSync(script, { force: true });
  }
}
