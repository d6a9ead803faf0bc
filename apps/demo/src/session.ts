import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { formatCount } from './format.js';
import { expectWritable, parseOptions, tokensToRead } from './options.js';
import type { DemoOptions } from './options.js';
import type { DemoRecord, DeviceRecord, ModelRecord } from './record.js';
import { renderReport } from './report.js';
import { describeDevice, describeExtrapolation, describeText } from './table.js';
import { resultTable, Terminal } from './terminal.js';
import { heldOutDocument, readDocument } from './text.js';
import { type ExitStatus, failureOf } from './usage.js';

/** What a model is asked to do. */
export interface ReadingTask {
  /** The bytes to read, one token each. */
  readonly tokens: Uint8Array;
  /** Bytes to write on from there. */
  readonly continuation: number;
  readonly seed: number;
}

/** Called as work goes on: `reading`, 1024 of 4096. */
export type StageProgress = (stage: string, done: number, total: number) => void;

/** An open device that the models run on. */
export interface ModelHost {
  readonly device: DeviceRecord;
  /** Versions by name, for the record. */
  readonly versions: Readonly<Record<string, string>>;
  /** Loads one model, measures it and releases it. */
  measure(model: string, task: ReadingTask, progress: StageProgress): Promise<ModelRecord>;
  close(): Promise<void>;
}

/** The shipped models, and how to open a device for them. */
export interface ModelSource {
  /** Names of the models that are shipped, in the order in which `--models all` runs them. */
  readonly models: readonly string[];
  /** Those that run when none is named; default: all. */
  readonly defaults?: readonly string[];
  /** Opens the device; the caller closes it. */
  open(): Promise<ModelHost>;
}

/** Where a run writes. */
export interface Streams {
  readonly out: NodeJS.WritableStream & { readonly isTTY?: boolean };
  readonly err: NodeJS.WritableStream & { readonly isTTY?: boolean };
}

/**
 * One run of the demo, from arguments to exit status; never throws. Bad input gives a sentence on `err` and status 2 before the
 * device is opened, wherever that can be known.
 * @param args without node and script
 */
export async function runDemo(args: readonly string[], source: ModelSource, streams: Streams): Promise<ExitStatus> {
  try {
    const options = parseOptions(args, source.models, source.defaults);
    if ('help' in options) {
      streams.out.write(options.help);
      return 0;
    }
    await read(options, source, streams);
    return 0;
  } catch (error) {
    const { status, message } = failureOf(error);
    streams.err.write(`${message}\n`);
    return status;
  }
}

async function read(options: DemoOptions, source: ModelSource, { out, err }: Streams): Promise<void> {
  const document = await (options.text === undefined ? heldOutDocument() : readDocument(options.text));
  const text = { name: document.name, bytes: document.bytes.length };
  tokensToRead(options, text, true);
  await expectWritable('--report', options.report);
  if (options.json !== undefined && options.json !== '-') await expectWritable('--json', options.json);

  const terminal = new Terminal(options.json === '-' ? err : out);
  const date = new Date().toISOString();
  const host = await source.open();
  try {
    terminal.say(`Device: ${describeDevice(host.device)}`);
    const tokens = tokensToRead(options, text, host.device.software);
    const task: ReadingTask = { tokens: document.bytes.subarray(0, tokens), continuation: options.continuation, seed: options.seed };
    terminal.say(`Text: ${describeText({ ...text, tokens })}`);
    const models: ModelRecord[] = [];
    for (const model of options.models) {
      models.push(await host.measure(model, task, (stage, done, total) => terminal.progress(`${model}: ${stage}`, done, total)));
    }
    const record: DemoRecord = {
      date,
      versions: host.versions,
      device: host.device,
      text: { ...text, tokens },
      passage: passageOf(task.tokens),
      seed: options.seed,
      models,
    };
    terminal.say(`\n${resultTable(record)}`);
    const extrapolation = describeExtrapolation(record);
    if (extrapolation !== undefined) terminal.say(extrapolation);
    sayContinuations(record, terminal);
    await writeResults(record, options, terminal, out);
  } finally {
    terminal.finish();
    await host.close();
  }
}

function sayContinuations(record: DemoRecord, terminal: Terminal): void {
  const written = record.models.filter(({ continuation }) => continuation !== '');
  if (written.length === 0) return;
  terminal.say(`\nThe text breaks off: … ${oneLine(record.passage)}`);
  for (const { name, continuation } of written) terminal.say(`\n${name} goes on: ${oneLine(continuation)}`);
}

async function writeResults(
  record: DemoRecord,
  { json, report }: DemoOptions,
  terminal: Terminal,
  out: NodeJS.WritableStream,
): Promise<void> {
  const html = renderReport(record);
  await writeFile(report, html);
  terminal.say(`\nReport: ${resolve(report)} (${formatCount(Buffer.byteLength(html) / 1024)} KiB, open it in a browser)`);
  if (json === undefined) return;
  const lines = `${JSON.stringify(record, null, 2)}\n`;
  if (json === '-') out.write(lines);
  else await writeFile(json, lines);
}

/** The end of what was read, from a word's beginning: at most 240 bytes. */
export function passageOf(tokens: Uint8Array): string {
  const tail = tokens.subarray(Math.max(0, tokens.length - 240));
  const text = new TextDecoder().decode(tail);
  return tail.length === tokens.length ? text : text.replace(/^\S*\s+/, '');
}

/** White space and control characters as single spaces: a text must not steer the terminal. */
const oneLine = (text: string): string => text.replace(/[\s\p{Cc}]+/gu, ' ').trim();
