import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { Command, CommanderError, InvalidArgumentError } from 'commander';
import { UsageError } from './usage.js';

/** What the command line asks for. */
export interface DemoOptions {
  /** Tokens (bytes) to read; undefined leaves the choice to {@link tokensToRead}. */
  readonly tokens?: number;
  /** Names of the models to run, each once, in the order given. */
  readonly models: readonly string[];
  /** Path of a text; undefined reads the held-out chapters of Moby-Dick. */
  readonly text?: string;
  /** Where the record goes as JSON: a path, or `-` for standard output. */
  readonly json?: string;
  readonly report: string;
  readonly seed: number;
  /** Bytes that each model writes on. */
  readonly continuation: number;
}

/** Help was asked for: `text` goes to standard output, and the exit status is 0. */
export interface HelpRequest {
  readonly help: string;
}

/**
 * Parses the arguments behind `npm run demo --`.
 * @param args without node and script
 * @param models names of the models that are shipped, in the order in which `--models all` runs them
 * @param defaults those among them that run when none is named
 * @throws UsageError that names the option, what was given and what was expected
 */
export function parseOptions(
  args: readonly string[],
  models: readonly string[],
  defaults: readonly string[] = models,
): DemoOptions | HelpRequest {
  let help = '';
  const command = demoCommand(models, defaults)
    .exitOverride()
    .configureOutput({ writeOut: (text) => void (help += text), writeErr: () => undefined });
  try {
    command.parse(args, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { help };
    throw new UsageError(`${error.message.replace(/^error: /, '')}; see \`npm run demo -- --help\``, { cause: error });
  }
  const { tokens, text, json, report, seed, continue: continuation, models: names } = command.opts<ParsedOptions>();
  return {
    models: names.length === 0 ? defaults : names,
    report,
    seed,
    continuation,
    ...(tokens !== undefined && { tokens }),
    ...(text !== undefined && { text }),
    ...(json !== undefined && { json: json === true ? '-' : json }),
  };
}

interface ParsedOptions {
  tokens?: number;
  models: string[];
  text?: string;
  json?: string | true;
  report: string;
  seed: number;
  continue: number;
}

function demoCommand(models: readonly string[], defaults: readonly string[]): Command {
  return new Command('npm run demo --')
    .description('Reads a long document with small language models, one an attention technique, and compares them.')
    .option(
      '--tokens <count>',
      'bytes to read; default 2048 on a software device, 16384 on a GPU',
      integer(1, Number.MAX_SAFE_INTEGER, 'tokens'),
    )
    .option(
      '--models <names...>',
      `which of ${models.join(', ')} (separated by commas or spaces), or all; default ${defaults.join(', ')}`,
      namesAmong(models),
      [],
    )
    .option('--text <file>', 'a text of your own; default: the last chapters of Moby-Dick, which no model was trained on')
    .option('--json [file]', 'also write the record as JSON, to standard output when no file is named')
    .option('--report <file>', 'where the report goes', 'report.html')
    .option('--seed <number>', 'seed of the continuation', integer(0, 0xffff_ffff, 'a seed'), 1)
    .option('--continue <bytes>', 'bytes that each model writes on', integer(0, 100_000, 'bytes'), 200)
    .allowExcessArguments(false);
}

function integer(least: number, most: number, what: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least || value > most) {
      const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
      throw new InvalidArgumentError(`Expected ${what} as a whole number ${range}`);
    }
    return value;
  };
}

/** Collects names from `a,b c` and from repeated options; `all` stands for every name. */
function namesAmong(models: readonly string[]): (text: string, before: string[]) => string[] {
  return (text, before) => {
    const names = text.split(',').flatMap((name) => (name === 'all' ? models : name === '' ? [] : [name]));
    if (names.length === 0) throw new InvalidArgumentError(`Expected names among ${models.join(', ')}`);
    for (const name of names) {
      if (!models.includes(name)) throw new InvalidArgumentError(`There is no model "${name}"; expected names among ${models.join(', ')}`);
    }
    return [...new Set([...before, ...names])];
  };
}

/**
 * How many tokens a run reads: what was asked for, or 2,048 on a software device and 16,384 on a GPU, if the text has as many.
 * @throws UsageError when more tokens are asked for than the text has bytes
 */
export function tokensToRead(options: DemoOptions, text: { name: string; bytes: number }, isSoftware: boolean): number {
  if (options.tokens === undefined) return Math.min(text.bytes, isSoftware ? 2048 : 16_384);
  if (options.tokens > text.bytes) {
    throw new UsageError(
      `--tokens ${options.tokens} is more than ${text.name} has: ${text.bytes} bytes, one token each; ask for at most ${text.bytes} or give a longer --text`,
    );
  }
  return options.tokens;
}

/**
 * Makes sure, before minutes of work, that a file can be written there.
 * @throws UsageError when the folder is missing or not writable, or when the path is a folder
 */
export async function expectWritable(option: string, path: string): Promise<void> {
  const folder = dirname(resolve(path));
  const target = await stat(path).catch(() => undefined);
  if (target?.isDirectory()) throw new UsageError(`${option} ${path} is a folder; name a file`);
  if (!(await stat(folder).catch(() => undefined))?.isDirectory())
    throw new UsageError(`${option} ${path} cannot be written: there is no folder ${folder}; make it first`);
  await access(target ? path : folder, constants.W_OK).catch((cause: unknown) => {
    throw new UsageError(`${option} ${path} cannot be written: no permission; choose another place`, { cause });
  });
}
