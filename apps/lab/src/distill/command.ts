import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Device, Params } from '@heed/core';
import { fileSink, saveParameters } from '@heed/core/io';
import { namedTensors } from '@heed/core/optim';
import { type LoadedModel, loadModel } from '../model/shipped.js';
import type { Corpus } from '../text/corpus.js';
import { evaluate } from '../training/evaluate.js';
import { type ConversionOptions, convertToLawcat } from './convert.js';

/** A conversion from file to file. */
export interface ConversionRun {
  device: Device;
  /** Weights of a softmax model: a run's, or the demo's. */
  teacher: string;
  /** Where the weights of the converted model go, f16. */
  out: string;
  corpus: Corpus;
  heldOut: Uint8Array;
  /** Lengths at which both models are evaluated, each sequence from its own start. */
  lengths: readonly number[];
  options?: ConversionOptions;
  seed?: number;
  report(line: string): void;
}

/** Bits a byte of teacher and student by length. */
export interface ConversionSummary {
  teacher: Record<number, number>;
  student: Record<number, number>;
}

/** Converts a weights file, evaluates both models and writes the student's. */
export async function convertFile(run: ConversionRun): Promise<ConversionSummary> {
  const { device, corpus, report } = run;
  const teacher = await loadModel(device, run.teacher, device.isSoftware ? 'f32' : 'f16');
  const trees: LoadedModel[] = [teacher];
  try {
    const before = await bitsByLength(run, teacher);
    report(`teacher: ${described(before)}`);
    const { shares } = teacher.config.corpus;
    const student = await convertToLawcat(teacher, run.options ?? {}, {
      device,
      corpus,
      seed: run.seed ?? 1,
      report,
      ...(shares && { shares }),
    });
    trees.push(student);
    const after = await bitsByLength(run, student);
    report(`student: ${described(after)}`);
    await mkdir(dirname(run.out), { recursive: true });
    const sink = await fileSink(run.out);
    await saveParameters(sink, student.params, { dtype: 'f16', notes: { config: JSON.stringify(student.config) } });
    await sink.close();
    return { teacher: before, student: after };
  } finally {
    for (const { params } of trees) for (const t of namedTensors(params as Params).values()) t.dispose();
  }
}

async function bitsByLength({ device, heldOut, lengths }: ConversionRun, { model, params }: LoadedModel): Promise<Record<number, number>> {
  const found: Record<number, number> = {};
  for (const context of lengths) {
    const batch = device.isSoftware ? 1 : Math.max(1, Math.floor(16384 / context));
    found[context] = (await evaluate(model, params, device, heldOut, { context, batch })).bitsPerByte;
  }
  return found;
}

function described(bits: Record<number, number>): string {
  return Object.entries(bits)
    .map(([length, value]) => `${value.toFixed(4)} bits a byte at ${length} tokens`)
    .join(', ');
}
