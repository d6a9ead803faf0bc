import { tiers } from '../device/capabilities.js';
import type { Tier } from '../device/capabilities.js';
import { withDevice } from '../device/open.js';
import { HeedError } from '../errors.js';
import { fileSource } from '../io/bytes.js';
import { readGoldenCase } from './golden-case.js';
import type { GoldenCase } from './golden-case.js';
import { runGoldenCase } from './golden.js';
import type { GoldenMapping } from './golden.js';

type Files = typeof import('node:fs/promises');
type Paths = typeof import('node:path');

/** Reads the case at a path (Node only); its `file` is the name without folders. */
export async function loadGoldenCase(path: string): Promise<GoldenCase> {
  return readGoldenCase(path.split(/[\\/]/).at(-1) ?? path, await fileSource(path));
}

/**
 * The `.safetensors` files that paths stand for, sorted: files themselves, and all beneath folders (Node only).
 * @throws HeedError INVALID_FILE for a path that does not exist or a folder without cases
 */
export async function goldenFiles(paths: readonly string[]): Promise<string[]> {
  const { readdir, stat } = await nodeFiles();
  const { join } = await nodePaths();
  const found: string[] = [];
  for (const path of paths) {
    const kind = await stat(path).catch(() => undefined);
    if (!kind) throw new HeedError('INVALID_FILE', `golden: there is no file or folder ${path}; give folders or files of golden cases`);
    if (!kind.isDirectory()) {
      found.push(path);
      continue;
    }
    const inside = (await readdir(path, { recursive: true })).filter((name) => name.endsWith('.safetensors'));
    if (inside.length === 0)
      throw new HeedError('INVALID_FILE', `golden: folder ${path} holds no .safetensors file; give a folder of golden cases`);
    found.push(...inside.sort().map((name) => join(path, name)));
  }
  return found;
}

/** The part of vitest's (or any runner's) `test` that is used here. */
export type RegisterTest = (name: string, run: () => Promise<void>) => void;

/**
 * Registers one test for each case of a folder and tier (Node only): `await goldenTests(test, folder, mapping)`. A test fails
 * unless its case passes, and when the case leaves tensors alive.
 * @param folder path of the folder
 * @param options the tiers to run on, default baseline and subgroups; `only` keeps the ops for which it is true
 */
export async function goldenTests(
  test: RegisterTest,
  folder: string,
  mapping: GoldenMapping,
  options: { tiers?: readonly Tier[]; only?: (op: string) => boolean } = {},
): Promise<void> {
  const { only: wanted = () => true, tiers: chosen = tiers.slice(0, 2) } = options;
  for (const path of await goldenFiles([folder])) {
    const golden = await loadGoldenCase(path);
    if (!wanted(golden.op)) continue;
    for (const tier of chosen) {
      test(`the golden case ${golden.file} passes on tier ${tier}`, () =>
        withDevice(
          async (device) => {
            const report = await runGoldenCase(golden, mapping, device, tier);
            if (report.status !== 'pass') throw new HeedError('KERNEL_FAILED', report.message ?? report.status);
            const { tensors } = device.memory();
            if (tensors > 0)
              throw new HeedError('KERNEL_FAILED', `golden: ${golden.op} leaves ${tensors} tensors alive; free what run makes`);
          },
          { tier },
        ));
    }
  }
}

const nodeFiles = (): Promise<Files> => node('node:fs/promises');
const nodePaths = (): Promise<Paths> => node('node:path');

/** A module by a variable name, so that bundlers for browsers do not follow it. */
function node<T>(name: string): Promise<T> {
  return import(/* @vite-ignore */ /* webpackIgnore: true */ name) as Promise<T>;
}
