import { formatBytes } from '@heed/core';
import { formatCount, formatNumber, formatParameters } from './format.js';
import type { DeviceRecord, ModelRecord, TextRecord } from './record.js';

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
