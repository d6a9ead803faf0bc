// `npm run golden -- <folder or files...>`: bundles the runner with each package's test/golden.ts, from their sources, and runs that.
// One bundle means one copy of core, so that tensors of a technique are tensors of the runner; it is also what travels to a
// machine without the workspace (`--bundle FILE`).
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const tooling = dirname(dirname(fileURLToPath(import.meta.url)));
const packages = join(dirname(tooling), 'packages');

/** Writes the runner with all mappings as one script. @param {string} outfile */
async function bundleRunner(outfile) {
  const mappings = readdirSync(packages)
    .map((name) => join(packages, name, 'test', 'golden.ts'))
    .filter((path) => existsSync(path));
  const lines = mappings.map((path, i) => `import mapping${i} from ${JSON.stringify(path)};`);
  lines.push(`import { main } from './golden/cli.mjs';`);
  lines.push(`process.exitCode = await main(process.argv.slice(2), [${mappings.map((_, i) => `mapping${i}`).join(', ')}]);`);
  await bundle(lines, outfile);
}

/** Writes a script over sources; only `webgpu` is left outside. @param {string[]} lines @param {string} outfile */
async function bundle(lines, outfile) {
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

/** Runs a script beneath tooling, where `webgpu` resolves; it is named by process, so that two runs do not share a file. @param {(outfile: string) => Promise<void>} write */
async function runScript(write) {
  const folder = join(tooling, '.tsbuild', 'golden');
  mkdirSync(folder, { recursive: true });
  const script = join(folder, `run-${process.pid}.mjs`);
  try {
    await write(script);
    process.setSourceMapsEnabled(true);
    await import(pathToFileURL(script).href);
  } finally {
    rmSync(script, { force: true });
  }
}

const [option, outfile] = process.argv.slice(2);
if (option === '--make-matrix-cases') {
  const root = JSON.stringify(dirname(tooling));
  await runScript((script) => bundle([`import { main } from './golden/matrix-cases.ts';`, `await main(${root});`], script));
} else if (option !== '--bundle') await runScript(bundleRunner);
else if (outfile !== undefined) await bundleRunner(resolve(outfile));
else {
  console.error('golden: --bundle was given no file; name the script to write, for instance golden.mjs');
  process.exitCode = 2;
}
