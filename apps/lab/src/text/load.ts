import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { LAB } from '../paths.js';
import type { Corpus, CorpusIndex } from './corpus.js';
import { heldOut } from './moby-dick.js';

const indexSchema = z.object({
  parts: z.array(z.object({ name: z.string(), start: z.int().min(0), end: z.int().min(1) })).min(1),
  sha256: z.string(),
});

/**
 * Reads the training bytes and the index beside them (`train.json` for `train.bin`).
 * @param path relative to the folder of apps/lab, or absolute
 * @throws Error when a file is missing or the bytes are not those of the index
 */
export async function loadCorpus(path: string): Promise<Corpus> {
  const file = resolve(LAB, path);
  const indexFile = join(dirname(file), 'train.json');
  const bytes = await readOrExplain(file);
  const index: CorpusIndex = indexSchema.parse(JSON.parse((await readOrExplain(indexFile)).toString('utf8')));
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  if (sha256 !== index.sha256) {
    throw new Error(`corpus: ${file} has sha256 ${sha256}, ${indexFile} names ${index.sha256}; run \`npm run lab -- prepare\` again`);
  }
  return { bytes, parts: index.parts };
}

/**
 * The held-out chapters of the book at this path.
 * @param path relative to the folder of apps/lab, or absolute
 */
export async function loadHeldOut(path: string): Promise<Uint8Array> {
  return heldOut(await readOrExplain(resolve(LAB, path)));
}

async function readOrExplain(file: string): Promise<Buffer> {
  return readFile(file).catch((cause: unknown) => {
    throw new Error(`corpus: ${file} cannot be read; run \`npm run lab -- prepare\` first`, { cause });
  });
}
