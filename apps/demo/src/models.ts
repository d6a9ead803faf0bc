import { readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { type Device, openDevice, RandomStream } from '@heed/core';
import { namedTensors } from '@heed/core/optim';
import { disposeState, loadModel, type LoadedModel, Reader, stateBytes } from '@heed/lab/model';
import { bitsByPosition, type LengthPoint, type ModelRecord } from './record.js';
import type { ModelHost, ModelSource, ReadingTask, StageProgress } from './session.js';

const folder = fileURLToPath(new URL('../assets/models/', import.meta.url));

/** The models that run by default, in this order: one of each family. The others follow by name. */
const defaults = ['softmax', 'lightning2', 'neighborhood', 'zeta'];

// Tokens a step of the reading: long enough to fill a GPU, short enough for a live progress bar on a processor.
const pieceOf = (device: Device): number => (device.isSoftware ? 256 : 2048);
/** Tokens read one by one at each length of the curve, to time decoding there. */
const decodedAtLength = 8;
/** Bytes written before the clock starts. */
const firstWritten = 4;

/** The checkpoints in assets/models. */
export function shippedModels(): ModelSource {
  const names = readdirSync(folder)
    .filter((file) => file.endsWith('.safetensors'))
    .map((file) => file.slice(0, -'.safetensors'.length));
  const place = (name: string): number => (defaults.includes(name) ? defaults.indexOf(name) : defaults.length);
  return { models: names.sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1)), defaults, open };
}

async function open(): Promise<ModelHost> {
  const device = await openDevice();
  const { name, driver, tier, software, features } = device.report;
  return {
    device: { name, driver, tier, software, features },
    versions: { heed: await versionOf('../package.json'), node: process.versions.node },
    measure: (model, task, progress) => measure(device, model, task, progress),
    close: () => device.close(),
  };
}

async function versionOf(path: string): Promise<string> {
  const text = await readFile(fileURLToPath(new URL(path, import.meta.url)), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

async function measure(device: Device, name: string, task: ReadingTask, progress: StageProgress): Promise<ModelRecord> {
  progress('loading', 0, 1);
  const loaded = await loadModel(device, `${folder}${name}.safetensors`, device.isSoftware ? 'f32' : 'f16');
  try {
    await warmUp(device, loaded, Math.min(pieceOf(device), task.tokens.length), progress);
    return await readAndWrite(device, name, loaded, task, progress);
  } finally {
    for (const t of namedTensors(loaded.params).values()) t.dispose();
  }
}

/** Compiles every kernel of the reading before the clock starts. */
async function warmUp(device: Device, loaded: LoadedModel, piece: number, progress: StageProgress): Promise<void> {
  progress('compiling', 0, 1);
  const reader = readerOf(device, loaded, piece + 1);
  const blank = new Uint8Array(piece).fill(32);
  await Promise.all([reader.read(blank, blank), reader.next(32)]); // asked for together, they compile together
  disposeState(reader.state);
}

function readerOf(device: Device, { model, params }: LoadedModel, capacity: number): Reader {
  return new Reader(model, params, device, model.start(device, { batch: 1, capacity }));
}

async function readAndWrite(
  device: Device,
  name: string,
  loaded: LoadedModel,
  task: ReadingTask,
  progress: StageProgress,
): Promise<ModelRecord> {
  const { tokens } = task;
  device.resetPeak();
  const reader = readerOf(device, loaded, tokens.length + task.continuation + 1);
  try {
    const { bits, curve, prefillMs, prefilled } = await readAll(device, reader, tokens, progress);
    const { text, perSecond } = await writeOn(reader, task, progress);
    return {
      name,
      parameters: [...namedTensors(loaded.params).values()].reduce((sum, t) => sum + t.size, 0),
      trainedContext: loaded.config.training.context,
      bitsPerByte: bits.reduce((sum, b) => sum + b, 0) / Math.max(1, bits.length),
      prefillTokensPerSecond: prefilled / (prefillMs / 1000),
      decodeTokensPerSecond: perSecond,
      peakBytes: device.memory().peakBytes,
      stateBytes: curve.at(-1)?.stateBytes ?? stateBytes(reader.state),
      continuation: text,
      curve,
      bitsByPosition: bitsByPosition(bits),
    };
  } finally {
    disposeState(reader.state);
  }
}

/** Reads all but the last byte (the continuation begins with it); costs at lengths that double. */
async function readAll(
  device: Device,
  reader: Reader,
  tokens: Uint8Array,
  progress: StageProgress,
): Promise<{ bits: number[]; curve: LengthPoint[]; prefillMs: number; prefilled: number }> {
  const piece = pieceOf(device);
  const end = tokens.length - 1;
  const bits: number[] = [];
  const curve: LengthPoint[] = [];
  let [at, prefillMs, prefilled, mark] = [0, 0, 0, piece];
  while (at < end) {
    const n = Math.min(piece, end - at);
    const started = performance.now();
    const own = await reader.read(tokens.subarray(at, at + n), tokens.subarray(at + 1, at + n + 1));
    prefillMs += performance.now() - started;
    prefilled += n;
    at += n;
    for (const b of own) bits.push(b);
    progress('reading', at, end);
    if (at < mark && at < end) continue;
    mark *= 2;
    const decoded = await decodeSome(reader, tokens, at, Math.min(decodedAtLength, end - at), bits);
    curve.push({
      tokens: at,
      prefillMs,
      peakBytes: device.memory().peakBytes,
      stateBytes: stateBytes(reader.state),
      decodeMsPerToken: decoded.ms,
    });
    at += decoded.count;
  }
  return { bits, curve, prefillMs, prefilled };
}

/** The next bytes of the text one by one: the same text, the other way of reading it. */
async function decodeSome(
  reader: Reader,
  tokens: Uint8Array,
  at: number,
  count: number,
  bits: number[],
): Promise<{ count: number; ms: number }> {
  const times: number[] = [];
  for (let i = 0; i < count; i++) {
    const started = performance.now();
    const [b] = await reader.read(tokens.subarray(at + i, at + i + 1), tokens.subarray(at + i + 1, at + i + 2));
    times.push(performance.now() - started);
    bits.push(b ?? 0);
  }
  times.sort((a, b) => a - b);
  return { count, ms: times[times.length >> 1] ?? 0 };
}

async function writeOn(reader: Reader, task: ReadingTask, progress: StageProgress): Promise<{ text: string; perSecond: number }> {
  const written: number[] = [];
  const last = task.tokens.at(-1) ?? 32;
  let started = performance.now();
  for await (const byte of reader.write(last, task.continuation, new RandomStream(task.seed, 'continuation'))) {
    written.push(byte);
    if (written.length === firstWritten) started = performance.now();
    if (written.length % 16 === 0 || written.length === task.continuation) progress('writing', written.length, task.continuation);
  }
  const timed = Math.max(0, written.length - firstWritten);
  return {
    text: new TextDecoder().decode(Uint8Array.from(written)),
    perSecond: timed / Math.max(1e-9, (performance.now() - started) / 1000),
  };
}
