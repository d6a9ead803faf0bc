import { formatBytes } from '@heed/core';
import Table from 'cli-table3';
import type { BenchRecord, RecordEntry } from './record.js';

const DIGITS = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

/** Three significant digits, whole from 1,000 on; `-` for what is not known. */
export function figure(value: number | undefined): string {
  if (value === undefined) return '-';
  return Math.abs(value) >= 1000 ? WHOLE.format(value) : DIGITS.format(value);
}

export const percent = (share: number | undefined): string =>
  share === undefined ? '-' : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

/** A column of the table, the same on the terminal, in the report and in the docs. */
export interface Column {
  readonly heading: string;
  readonly value: (entry: RecordEntry) => string;
  readonly numeric: boolean;
}

export const COLUMNS: readonly Column[] = [
  { heading: 'what', value: ({ id }) => id, numeric: false },
  { heading: 'GPU ms', value: ({ ms }) => figure(ms), numeric: true },
  { heading: 'quartiles', value: ({ quartiles: [low, high] }) => `${figure(low)}-${figure(high)}`, numeric: true },
  { heading: 'warm ms', value: ({ warm }) => figure(warm?.ms), numeric: true },
  { heading: 'wall ms', value: ({ wallMs }) => figure(wallMs), numeric: true },
  { heading: 'TFLOP/s', value: ({ tflops }) => figure(tflops), numeric: true },
  { heading: 'GB/s', value: ({ gbps }) => figure(gbps), numeric: true },
  { heading: 'peak', value: ({ bytes }) => (bytes === undefined ? '-' : formatBytes(bytes)), numeric: true },
  { heading: 'floor', value: ({ floorShare }) => percent(floorShare), numeric: true },
  { heading: 'error', value: ({ error }) => error.toExponential(1), numeric: true },
  { heading: 'peer', value: ({ peer }) => (peer ? `${peer.name} ${figure(peer.ms)} ms` : '-'), numeric: false },
  { heading: 'ratio', value: ({ ratio }) => figure(ratio), numeric: true },
];

/** The results as lines of text, numbers flush right. Without peers their columns are left out. */
export function resultTable({ entries }: Pick<BenchRecord, 'entries'>): string {
  const columns = COLUMNS.filter(({ value }) => entries.some((entry) => value(entry) !== '-'));
  const table = new Table({
    head: columns.map(({ heading }) => heading),
    colAligns: columns.map(({ numeric }) => (numeric ? 'right' : 'left')),
    // no colours, which a log file would show as escape sequences, and no rules between rows
    style: { head: [], border: [], compact: true },
  });
  for (const entry of entries) table.push(columns.map(({ value }) => value(entry)));
  return table.toString();
}

/** `NVIDIA H100 (580.159), tier matrix, shipped settings`. */
export function describeDevice({ device }: Pick<BenchRecord, 'device'>): string {
  const kind = device.software ? ', a software device: figures rank designs and say nothing about speed on hardware' : '';
  return `${device.name}${device.driver === '' ? '' : ` (${device.driver})`}, tier ${device.tier}, ${device.settings} settings${kind}`;
}
