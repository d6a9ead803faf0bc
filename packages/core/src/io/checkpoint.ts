import type { Params } from '../autodiff/grad.js';
import type { DType } from '../dtype.js';
import { HeedError } from '../errors.js';
import { namedTensors, type Optimizer } from '../optim/index.js';
import { writeValues } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import type { ByteSink, ByteSource } from './bytes.js';
import { encodeFloats, openSafetensors, type SafetensorsTensor, writeSafetensors } from './safetensors.js';
import type { SafetensorsDType } from './safetensors-header.js';

/** Where a run stands, beside its tensors: all that a resumed run needs to go on as if it had not stopped. */
export interface TrainingProgress {
  /** Steps done. */
  step: number;
  seed: number;
  /** What else the run must remember, for instance its configuration. Values are strings, as in the file. */
  notes?: Readonly<Record<string, string>>;
}

const fileDTypes: Record<DType, SafetensorsDType> = { f32: 'F32', f16: 'F16', i32: 'I32', u32: 'U32', u8: 'U8' };

async function toFile(name: string, t: Tensor, dtype: SafetensorsDType): Promise<SafetensorsTensor> {
  const values = await t.read();
  const bytes =
    values instanceof Float32Array && dtype !== 'F32'
      ? encodeFloats(values, dtype as 'F16' | 'BF16')
      : new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return { name, dtype, shape: [...t.shape], bytes };
}

/**
 * Writes a model's parameters.
 * @param options.dtype how floats are stored: their own dtype (default), or `f16` for shipping
 * @param options.notes strings by name, kept in the file's metadata
 */
export async function saveParameters(
  sink: ByteSink,
  params: Params,
  options: { dtype?: 'f16'; notes?: Readonly<Record<string, string>> } = {},
): Promise<void> {
  const tensors: SafetensorsTensor[] = [];
  for (const [name, t] of namedTensors(params))
    tensors.push(await toFile(name, t, options.dtype === 'f16' && t.dtype === 'f32' ? 'F16' : fileDTypes[t.dtype]));
  await writeSafetensors(sink, tensors, options.notes ?? {});
}

/**
 * Fills a model's parameters from a file: every name and shape must fit; floats are converted to the parameter's dtype.
 * @returns the notes of the file
 * @throws HeedError INVALID_FILE with all differences at once
 */
export async function loadParameters(source: ByteSource, params: Params): Promise<Record<string, string>> {
  const file = await openSafetensors(source);
  await fill(file, namedTensors(params), '');
  return Object.fromEntries(file.metadata);
}

type OpenFile = Awaited<ReturnType<typeof openSafetensors>>;

async function fill(file: OpenFile, targets: ReadonlyMap<string, Tensor>, prefix: string): Promise<void> {
  const wrong: string[] = [];
  for (const [name, t] of targets) {
    const entry = file.tensors.get(prefix + name);
    if (!entry) wrong.push(`"${name}" [${t.shape.join(', ')}] is not in the file`);
    else if (entry.shape.join() !== t.shape.join())
      wrong.push(`"${name}" is [${entry.shape.join(', ')}] in the file, the model wants [${t.shape.join(', ')}]`);
  }
  for (const name of file.tensors.keys()) {
    if (name.startsWith(prefix) && !targets.has(name.slice(prefix.length)))
      wrong.push(`"${name.slice(prefix.length)}" is in the file, the model has none of that name`);
  }
  if (wrong.length > 0)
    throw new HeedError(
      'INVALID_FILE',
      `checkpoint: the file is not of this model: ${wrong.slice(0, 8).join('; ')}${wrong.length > 8 ? `; and ${wrong.length - 8} more` : ''}`,
    );
  for (const [name, t] of targets) {
    const entry = file.tensors.get(prefix + name);
    if (!entry) continue;
    const values = await file.values(prefix + name);
    if (values instanceof BigInt64Array || values instanceof BigUint64Array)
      throw new HeedError('INVALID_FILE', `checkpoint: "${name}" is stored as ${entry.dtype}; parameters are floats or 32-bit integers`);
    writeValues(
      t,
      values instanceof Int16Array || values instanceof Int8Array || values instanceof Uint16Array ? Int32Array.from(values) : values,
    );
  }
}

/** Writes parameters, the optimiser's moments and where the run stands into one file. */
export async function saveTraining(sink: ByteSink, params: Params, optimizer: Optimizer, progress: TrainingProgress): Promise<void> {
  const tensors: SafetensorsTensor[] = [];
  for (const [name, t] of namedTensors(params)) tensors.push(await toFile(`model.${name}`, t, fileDTypes[t.dtype]));
  for (const [name, t] of optimizer.tensors()) tensors.push(await toFile(`optimizer.${name}`, t, fileDTypes[t.dtype]));
  await writeSafetensors(sink, tensors, {
    ...progress.notes,
    step: String(progress.step),
    seed: String(progress.seed),
    optimizer: optimizer.rule,
    optimizerSteps: String(optimizer.steps),
  });
}

/**
 * Takes a run up where `saveTraining` left it: fills parameters and moments, sets the optimiser's step count.
 * @throws HeedError INVALID_FILE when the file is of another model or optimiser, with all differences at once
 */
export async function loadTraining(source: ByteSource, params: Params, optimizer: Optimizer): Promise<TrainingProgress> {
  const file = await openSafetensors(source);
  const { step, seed, optimizer: rule, optimizerSteps, ...notes } = Object.fromEntries(file.metadata);
  if (step === undefined || seed === undefined || optimizerSteps === undefined)
    throw new HeedError(
      'INVALID_FILE',
      'checkpoint: the file holds no training run (step, seed and optimizerSteps are missing); use loadParameters for weights alone',
    );
  if (rule !== optimizer.rule)
    throw new HeedError('INVALID_FILE', `checkpoint: the run was optimised by ${rule}, this one by ${optimizer.rule}; use the same`);
  await fill(file, namedTensors(params), 'model.');
  await fill(file, optimizer.tensors(), 'optimizer.');
  optimizer.steps = Number(optimizerSteps);
  return { step: Number(step), seed: Number(seed), notes };
}
