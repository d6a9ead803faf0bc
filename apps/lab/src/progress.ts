import cliProgress from 'cli-progress';

/** Where progress is shown; `process.stderr` and `process.stdout` are of this type. */
export type ProgressStream = NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };

/** What is counted. */
export interface ProgressOptions {
  readonly label: string;
  readonly total: number;
  /** Name of what is counted, such as `tokens`. */
  readonly unit: string;
  /** Default: standard error, so that standard output carries results only. */
  readonly stream?: ProgressStream;
}

/** A running display of progress. */
export interface Progress {
  /** @param note a few words behind the count, such as the current loss */
  update(done: number, note?: string): void;
  /** Ends the display; call it on failure too. */
  end(note?: string): void;
}

const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

/** A live bar on a terminal; elsewhere (a pipe, a log file) a plain line at each tenth of the way. */
export function startProgress(options: ProgressOptions): Progress {
  const stream = options.stream ?? process.stderr;
  return stream.isTTY === true ? liveBar(options, stream) : plainLines(options, stream);
}

function liveBar({ label, total, unit }: ProgressOptions, stream: ProgressStream): Progress {
  const bar = new cliProgress.SingleBar(
    {
      // A narrow terminal gets a shorter bar, not a wrapped line.
      barsize: Math.max(8, Math.min(28, (stream.columns ?? 80) - 62)),
      format: '{label} {bar} {percentage} % | {value}/{total} {unit} | {duration_formatted} {note}',
      formatValue: (value, _options, type) => (type === 'value' || type === 'total' ? COUNT.format(value) : String(value)),
      hideCursor: true,
      stream,
    },
    cliProgress.Presets.shades_classic,
  );
  bar.start(total, 0, { label, unit, note: '' });
  return {
    update: (done, note = '') => bar.update(Math.min(done, total), { note }),
    end(note) {
      if (note !== undefined) bar.update({ note });
      bar.stop();
    },
  };
}

function plainLines({ label, total, unit }: ProgressOptions, stream: ProgressStream): Progress {
  let shown = 0;
  return {
    update(done, note = '') {
      const tenth = Math.floor((10 * Math.min(done, total)) / total);
      if (tenth <= shown) return;
      shown = tenth;
      stream.write(
        `${label} ${10 * tenth} % (${COUNT.format(Math.min(done, total))} of ${COUNT.format(total)} ${unit})${note && ` ${note}`}\n`,
      );
    },
    end(note) {
      if (note !== undefined) stream.write(`${label} ${note}\n`);
    },
  };
}

/** Where a training run stands. */
export interface TrainingState {
  /** Cross-entropy of the last batch in bits a byte. */
  readonly bits: number;
  /** The same on the held-out text, once evaluated. */
  readonly heldOutBits?: number;
  readonly learningRate: number;
  readonly tokensPerSecond: number;
}

/** The state as the note of a progress line: `1.732 bits/byte (held out 1.801), lr 2.9e-4, 120,394 tokens/s`. */
export function trainingNote({ bits, heldOutBits, learningRate, tokensPerSecond }: TrainingState): string {
  const held = heldOutBits === undefined ? '' : ` (held out ${heldOutBits.toFixed(3)})`;
  return `${bits.toFixed(3)} bits/byte${held}, lr ${learningRate.toExponential(1)}, ${COUNT.format(tokensPerSecond)} tokens/s`;
}
