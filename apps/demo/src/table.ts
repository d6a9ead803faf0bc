import { formatBytes } from '@heed/core';
import { formatCount, formatNumber, formatParameters } from './format.js';
import type { DemoRecord, DeviceRecord, ModelRecord, TextRecord } from './record.js';

/** A column of the comparison, the same on the terminal and in the report. */
export interface Column {
  /** Two short lines: what, and of what or in which unit. */
  readonly heading: readonly [string, string];
  readonly value: (model: ModelRecord) => string;
  /** Numbers stand flush right. */
  readonly numeric: boolean;
}

export const COLUMNS: readonly Column[] = [
  { heading: ['model', ''], value: ({ name }) => name, numeric: false },
  { heading: ['parameters', ''], value: ({ parameters }) => formatParameters(parameters), numeric: true },
  { heading: ['bits', 'a byte'], value: ({ bitsPerByte }) => bitsPerByte.toFixed(3), numeric: true },
  { heading: ['prefill', 'tokens/s'], value: (model) => formatNumber(model.prefillTokensPerSecond), numeric: true },
  { heading: ['decode', 'tokens/s'], value: (model) => formatNumber(model.decodeTokensPerSecond), numeric: true },
  { heading: ['memory', 'at most'], value: ({ peakBytes }) => formatBytes(peakBytes), numeric: true },
  { heading: ['state', 'at the end'], value: ({ stateBytes }) => formatBytes(stateBytes), numeric: true },
];

/** `NVIDIA H100 (driver 580.159), tier matrix`, and whether it is the processor that does the work. */
export function describeDevice({ name, driver, tier, software }: DeviceRecord): string {
  const kind = software ? ', a software device: the processor does the work of a GPU' : '';
  return `${name}${driver === '' ? '' : ` (${driver})`}, tier ${tier}${kind}`;
}

/** `Moby-Dick, chapters 132 to 135: 4,096 of 74,131 bytes`. */
export function describeText({ name, bytes, tokens }: TextRecord): string {
  return `${name}: ${tokens === bytes ? 'all' : `${formatCount(tokens)} of`} ${formatCount(bytes)} bytes`;
}

/** Bits a byte by which a model must read worse behind its training length before the table says so. */
const NOTABLE_LOSS = 0.5;

/**
 * What a reader of the table must know where a text is longer than what the models were trained on: which of them read it all alike,
 * and which lose their way. Nothing for a text within the training length.
 */
export function describeExtrapolation({ models, text }: Pick<DemoRecord, 'models' | 'text'>): string | undefined {
  const beyond = models.filter(({ trainedContext }) => trainedContext < text.tokens);
  const [first] = beyond;
  if (!first) return undefined;
  const lost = beyond.flatMap((model) => {
    const before = meanBits(model, (position) => position < model.trainedContext);
    const behind = meanBits(model, (position) => position >= model.trainedContext);
    return behind - before > NOTABLE_LOSS
      ? [`${model.name} (${before.toFixed(2)} bits a byte up to there, ${behind.toFixed(2)} behind)`]
      : [];
  });
  const trained = `Trained on ${formatCount(first.trainedContext)} tokens at a time`;
  if (lost.length === 0) return `${trained}; all of them read on behind that as well as before.`;
  return `${trained}; behind that ${lost.join(' and ')} ${lost.length === 1 ? 'loses its' : 'lose their'} way: positions never seen in training.`;
}

function meanBits({ bitsByPosition }: ModelRecord, counts: (position: number) => boolean): number {
  const bits = bitsByPosition.filter(({ position }) => counts(position)).map((point) => point.bits);
  return bits.reduce((sum, value) => sum + value, 0) / Math.max(1, bits.length);
}
