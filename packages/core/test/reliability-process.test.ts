// A script that uses withDevice ends by itself: nothing that Dawn holds keeps node alive.
import { spawn } from 'node:child_process';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'vite';
import { afterAll, beforeAll, expect, test } from 'vitest';

// inside of the package, so that the script finds `webgpu` as an application would
const folder = fileURLToPath(new URL('../.tsbuild/process-test/', import.meta.url));

beforeAll(async () => {
  await mkdir(folder, { recursive: true });
  await build({
    configFile: false,
    logLevel: 'error',
    root: folder,
    build: {
      ssr: true,
      minify: false,
      emptyOutDir: false,
      outDir: folder,
      rollupOptions: {
        input: fileURLToPath(new URL('../src/index.ts', import.meta.url)),
        output: { entryFileNames: 'core.mjs' },
        external: ['webgpu'],
      },
    },
  });
}, 120_000);
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Runs a module in a node of its own; what it printed and how it ended. */
async function runScript(name: string, text: string): Promise<{ output: string; code: number | null; signal: string | null }> {
  await writeFile(`${folder}${name}.mjs`, text);
  return new Promise((resolve, reject) => {
    // a process that stays alive is ended, which the signal tells
    const child = spawn(process.execPath, ['--expose-gc', `${folder}${name}.mjs`], { timeout: 90_000 });
    let output = '';
    child.stdout.on('data', (piece) => (output += piece));
    child.stderr.on('data', (piece) => (output += piece));
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ output, code, signal }));
  });
}

test('a script with withDevice prints its result and ends, garbage collections on the way included', async () => {
  const { output, code, signal } = await runScript(
    'ends',
    `import { withDevice, tensor, add } from './core.mjs';
    const values = await withDevice(async (device) => {
      for (let i = 0; i < 5; i++) {
        globalThis.gc();
        await new Promise((resolve) => setTimeout(resolve, 1));
        add(tensor(device, [i]), 1).dispose();
        await device.idle();
      }
      return [...(await add(tensor(device, [1, 2]), 1).read())];
    });
    console.log('values', values.join());`,
  );
  expect({ code, signal }, output).toEqual({ code: 0, signal: null });
  expect(output).toContain('values 2,3');
}, 120_000);

test('a script whose work throws ends too, with that error', async () => {
  const { output, code, signal } = await runScript(
    'throws',
    `import { withDevice, tensor } from './core.mjs';
    await withDevice((device) => {
      tensor(device, [1]);
      throw new Error('of the work');
    });`,
  );
  expect({ code, signal }, output).toEqual({ code: 1, signal: null });
  expect(output).toContain('of the work');
}, 120_000);
