import { type Progress, type ProgressStream, startProgress } from '@heed/lab/progress';
import Table from 'cli-table3';
import type { DemoRecord } from './record.js';
import { COLUMNS } from './table.js';

/** What the demo says while it works: sentences, and one bar (or plain lines, where there is no terminal) at a time. */
export class Terminal {
  readonly #stream: ProgressStream;
  #stage = '';
  #bar: Progress | undefined;

  /** @param stream default standard output; with `--json` alone the caller passes standard error, so that the JSON stands by itself */
  constructor(stream: ProgressStream = process.stdout) {
    this.#stream = stream;
  }

  /** A line of text; ends the bar before it. */
  say(line: string): void {
    this.finish();
    this.#stream.write(`${line}\n`);
  }

  /** Moves the bar of a stage; a new stage gets a new bar. */
  progress(stage: string, done: number, total: number): void {
    if (stage !== this.#stage || this.#bar === undefined) {
      this.finish();
      this.#stage = stage;
      this.#bar = startProgress({ label: stage, total, unit: 'tokens', stream: this.#stream });
    }
    this.#bar.update(done);
  }

  /** Ends the bar, if one runs; call it before the process ends for any reason. */
  finish(): void {
    this.#bar?.end();
    this.#bar = undefined;
  }
}

/** The comparison as lines of text, numbers flush right, 80 columns wide or a little less. */
export function resultTable(record: DemoRecord): string {
  const table = new Table({
    head: COLUMNS.map(({ heading: [first, second] }) => (second === '' ? first : `${first}\n${second}`)),
    colAligns: COLUMNS.map(({ numeric }) => (numeric ? 'right' : 'left')),
    // No colours of its own, which a log file would show as escape sequences, and no rules between rows.
    style: { head: [], border: [], compact: true },
  });
  for (const model of record.models) table.push(COLUMNS.map(({ value }) => value(model)));
  return table.toString();
}
