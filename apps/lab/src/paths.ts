import { fileURLToPath } from 'node:url';

// src/ and dist/ lie side by side, so that the same relative paths hold for sources and for the build.
const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** The folder of apps/lab: paths in configurations are relative to it. */
export const LAB: string = here('..');
/** Prepared corpus: `train.bin`, `train.json`. */
export const CORPUS_FOLDER: string = here('../.data');
/** Where the package of raw texts is installed, on demand. */
export const DATASETS_FOLDER: string = here('../.datasets');
/** The text of Moby-Dick that the demo ships. */
export const BOOK_FILE: string = here('../../demo/assets/moby-dick.txt');
