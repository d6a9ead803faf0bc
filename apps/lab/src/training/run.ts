import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '@heed/core';
import { fileSink, fileSource, loadTraining, saveParameters, saveTraining } from '@heed/core/io';
import type { LabConfig } from '../config.js';
import { buildModel } from '../model/mixers.js';
import { lossPlot, type TrainingHistory } from '../plot.js';
import { startProgress, trainingNote } from '../progress.js';
import type { Corpus } from '../text/corpus.js';
import { evaluate } from './evaluate.js';
import { Trainer } from './trainer.js';

/** What a run is given. */
export interface TrainingRun {
  device: Device;
  config: LabConfig;
  corpus: Corpus;
  /** Held-out text. */
  heldOut: Uint8Array;
  /** Folder of this run: checkpoint, weights, losses, plot. */
  folder: string;
  /** Go on from the folder's checkpoint. */
  resume: boolean;
  /** Where progress goes. Default standard error. */
  stream?: NodeJS.WritableStream;
}

/** What a run came to. */
export interface TrainingSummary {
  name: string;
  steps: number;
  parameters: number;
  bitsPerByte: number;
  heldOutBits: number;
  /** Of this session, without evaluations. */
  tokensPerSecond: number;
  seconds: number;
  skippedSteps: number;
  peakBytes: number;
}

// Losses are read this often: a read waits for the device, so it also bounds how far the host runs ahead.
const readEvery = 10;

/** Files of a run. */
export const runFiles = {
  checkpoint: 'checkpoint.safetensors',
  weights: 'weights.safetensors',
  losses: 'losses.json',
  plot: 'losses.svg',
} as const;

/** Trains a model as its configuration says; checkpoints, evaluates and plots on the way. */
export async function train(run: TrainingRun): Promise<TrainingSummary> {
  const { device, config, corpus, heldOut, folder } = run;
  const { training } = config;
  await mkdir(folder, { recursive: true });
  const trainer = new Trainer(device, buildModel(config), config, corpus);
  const progress = startProgress({ label: config.name, total: training.steps, unit: 'steps', ...(run.stream && { stream: run.stream }) });
  let history: TrainingHistory = { name: config.name, training: [], heldOut: [] };
  try {
    if (run.resume) {
      const { step } = await loadTraining(await fileSource(join(folder, runFiles.checkpoint)), trainer.params, trainer.optimizer);
      trainer.step = step;
      history = await readHistory(folder, config.name, step);
    }
    let bits = 0;
    let heldOutBits: number | undefined;
    let trainedMs = 0;
    const first = trainer.step;
    let since = performance.now();
    while (trainer.step < training.steps) {
      const loss = trainer.next();
      if (trainer.step % readEvery === 0 || trainer.step === training.steps) {
        bits = ((await loss.read())[0] ?? 0) / Math.LN2;
        history = { ...history, training: [...history.training, { step: trainer.step, bits }] };
        const ms = trainedMs + performance.now() - since;
        progress.update(
          trainer.step,
          trainingNote({
            bits,
            ...(heldOutBits !== undefined && { heldOutBits }),
            learningRate: trainer.learningRate,
            tokensPerSecond: ((trainer.step - first) * training.batch * training.context) / (ms / 1000),
          }),
        );
      }
      loss.dispose();
      const last = trainer.step === training.steps;
      if (trainer.step % training.evaluateEvery === 0 || last) {
        await device.idle();
        trainedMs += performance.now() - since;
        const found = await evaluate(trainer.model, trainer.params, device, heldOut, {
          context: training.context,
          tokens: training.evaluateTokens,
        });
        heldOutBits = found.bitsPerByte;
        history = { ...history, heldOut: [...history.heldOut, { step: trainer.step, bits: heldOutBits }] };
        since = performance.now();
      }
      if (trainer.step % training.checkpointEvery === 0 || last) {
        await device.idle();
        trainedMs += performance.now() - since;
        await checkpoint(folder, trainer, config, history);
        since = performance.now();
      }
    }
    const { skipped } = await trainer.optimizer.statistics();
    const seconds = trainedMs / 1000;
    const summary: TrainingSummary = {
      name: config.name,
      steps: trainer.step,
      parameters: trainer.parameters,
      bitsPerByte: bits,
      heldOutBits: heldOutBits ?? Number.NaN,
      tokensPerSecond: ((trainer.step - first) * training.batch * training.context) / Math.max(seconds, 1e-9),
      seconds,
      skippedSteps: skipped,
      peakBytes: device.memory().peakBytes,
    };
    progress.end();
    return summary;
  } catch (error) {
    progress.end('stopped');
    throw error;
  } finally {
    trainer.dispose();
  }
}

async function checkpoint(folder: string, trainer: Trainer, config: LabConfig, history: TrainingHistory): Promise<void> {
  const notes = { config: JSON.stringify(config) };
  const full = await fileSink(join(folder, runFiles.checkpoint));
  await saveTraining(full, trainer.params, trainer.optimizer, { step: trainer.step, seed: config.training.seed, notes });
  await full.close();
  const weights = await fileSink(join(folder, runFiles.weights));
  await saveParameters(weights, trainer.params, { dtype: 'f16', notes: { ...notes, step: String(trainer.step) } });
  await weights.close();
  await writeFile(join(folder, runFiles.losses), `${JSON.stringify(history)}\n`);
  await writeFile(join(folder, runFiles.plot), lossPlot([history]));
}

/** The losses up to a step; later ones belong to a run that the checkpoint does not know. */
async function readHistory(folder: string, name: string, step: number): Promise<TrainingHistory> {
  const path = join(folder, runFiles.losses);
  const there = await stat(path).then(
    () => true,
    () => false,
  );
  if (!there) return { name, training: [], heldOut: [] };
  const saved = JSON.parse(await readFile(path, 'utf8')) as TrainingHistory;
  const upTo = (points: TrainingHistory['training']): TrainingHistory['training'] => points.filter((p) => p.step <= step);
  return { name, training: upTo(saved.training), heldOut: upTo(saved.heldOut) };
}
