import { Command, CommanderError, InvalidArgumentError } from 'commander';
import { type Tier, tiers } from '@heed/core';
import { UsageError } from './usage.js';

export const suites = ['quick', 'kernels', 'masks', 'scaling', 'decode', 'overhead', 'peers', 'all'] as const;
export type SuiteName = (typeof suites)[number];

/** What the command line asks for. */
export interface BenchOptions {
  readonly suite: SuiteName;
  /** Tokens (of matrix products: edges) that replace the suite's own. */
  readonly sizes?: readonly number[];
  /** Parts of ids; entries with any of them are measured. */
  readonly only: readonly string[];
  /** Seconds after which no further entry is begun. */
  readonly limit?: number;
  readonly json?: string;
  readonly html?: string;
  /** Folder of records: writes `<date>-<device>.json` there, and the page that renders the newest record of each device. */
  readonly docs?: string;
  readonly tier?: Tier;
  /** Dawn's bounds checks and validation off: stands beside, never in place of, shipped settings. */
  readonly unchecked: boolean;
  /** Records of peers to join, as `peers/peers.py` writes them. */
  readonly peers: readonly string[];
  /** Records of ours to join, nothing is measured then. */
  readonly merge: readonly string[];
  /** Sources of flash-linear-attention, for the Python peers. */
  readonly fla?: string;
}

export interface HelpRequest {
  readonly help: string;
}

interface Parsed {
  sizes?: number[];
  only: string[];
  limit?: number;
  json?: string;
  html?: string;
  docs?: string;
  tier?: Tier;
  unchecked: boolean;
  peers: string[];
  merge: string[];
  fla?: string;
}

/**
 * Parses the arguments behind `npm run bench --`.
 * @throws UsageError that names the option, what was given and what was expected
 */
export function parseOptions(args: readonly string[]): BenchOptions | HelpRequest {
  let help = '';
  const command = benchCommand()
    .exitOverride()
    .configureOutput({ writeOut: (text) => void (help += text), writeErr: () => undefined });
  try {
    command.parse(args, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { help };
    throw new UsageError(`bench: ${error.message.replace(/^error: /, '')}; see \`npm run bench -- --help\``, { cause: error });
  }
  const [suite = 'quick'] = command.args;
  const known = suites.find((name) => name === suite);
  if (!known) throw new UsageError(`bench: there is no suite "${suite}"; use one of ${suites.join(', ')}`);
  return { suite: known, ...command.opts<Parsed>() };
}

function benchCommand(): Command {
  return new Command('npm run bench --')
    .description('Measures the kernels of Heed: GPU time with cold caches, error against float64 beside every time.')
    .argument('[suite]', `${suites.join(', ')}; default quick`)
    .option('--sizes <list>', 'tokens (of products: edges) in place of the suite’s own, separated by commas', sizesOf)
    .option('--only <parts>', 'entries whose id contains one of these parts, separated by commas', partsOf, [])
    .option(
      '--limit <seconds>',
      'begins no further entry after so long; what has a target comes first; default none, but 90 for quick on a software device',
      secondsOf,
    )
    .option('--json <file>', 'writes the record as JSON')
    .option('--html <file>', 'writes a report with plots and pictures of the masks')
    .option('--docs <folder>', 'writes <date>-<device>.json there, and kernels.md from the newest record of each device')
    .option('--tier <tier>', `${tiers.join(', ')}; default the best of the device`, tierOf)
    .option('--unchecked', "Dawn's bounds checks and validation off: for comparison only", false)
    .option('--peers <files>', 'joins records of peers (apps/bench/peers), separated by commas', partsOf, [])
    .option('--merge <files>', 'joins records of earlier runs and measures nothing', partsOf, [])
    .option('--fla <folder>', 'sources of flash-linear-attention, for the Python peers of the suite peers')
    .allowExcessArguments(false);
}

function sizesOf(text: string): number[] {
  return text.split(',').map((part) => {
    const value = Number(part);
    if (!/^\d+$/.test(part) || value < 1) throw new InvalidArgumentError(`Expected whole numbers from 1 on, separated by commas`);
    return value;
  });
}

function secondsOf(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('Expected seconds above 0');
  return value;
}

function partsOf(text: string, before: string[]): string[] {
  return [...before, ...text.split(',').filter((part) => part !== '')];
}

function tierOf(text: string): Tier {
  const tier = tiers.find((name) => name === text);
  if (!tier) throw new InvalidArgumentError(`There is no tier "${text}"; expected ${tiers.join(', ')}`);
  return tier;
}
