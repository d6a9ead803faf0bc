import { formatBytes } from '@heed/core';
import type { BenchRecord, RecordEntry } from './record.js';
import { crossings, maskFactors, propertiesOf, TARGETS, verdictOf } from './targets.js';
import { describeDevice, figure, percent } from './terminal.js';

/** A sentence an id of a target, or a property: what bounds it, and which attempts gave what. Kept by hand, in `docs/benchmarks/bounds.json`. */
export type Bounds = Readonly<Record<string, string>>;

/** What a record of training (`heed-training-1`) tells about its steps. */
export interface TrainingRecord {
  readonly schema: 'heed-training-1';
  readonly date: string;
  readonly device: { readonly name: string };
  readonly entries: readonly { readonly id: string; readonly stepWallMs: number; readonly stepGpuMs: number }[];
}

/** The page of docs: the newest record of each device, as markdown. */
export function renderPage(records: readonly BenchRecord[], bounds: Bounds = {}, training: readonly TrainingRecord[] = []): string {
  const newest = newestOf(records);
  const lines = [
    '# Kernels',
    '',
    '<!-- written by `npm run bench -- --docs docs/benchmarks`; edit bounds.json or the renderer, not this page -->',
    '',
    'GPU time by timestamp queries around whole calls: medians, caches emptied before each repetition (256 MiB written, untimed) after half a',
    'second of warm-up. Peers run on the same machine on the same numbers and are timed alike. Each time stands with the error of sampled rows',
    'against float64; a time without a right result is not printed. A ratio is the peer’s median over ours: above 1 we are faster.',
    '',
    ...newest.flatMap((record) => [
      ...sectionOf(record, bounds),
      ...trainingOf(training.filter(({ device }) => device.name === record.device.name)),
    ]),
  ];
  return `${lines.join('\n').trimEnd()}\n`;
}

/** The newest record of each device and setting, GPUs first. */
export function newestOf(records: readonly BenchRecord[]): BenchRecord[] {
  const newest = new Map<string, BenchRecord>();
  for (const record of records) {
    const key = `${record.device.name} ${record.device.settings}`;
    const known = newest.get(key);
    if (!known || known.date < record.date) newest.set(key, record);
  }
  return [...newest.values()].sort(
    (a, b) => Number(a.device.software) - Number(b.device.software) || a.device.name.localeCompare(b.device.name),
  );
}

function table(heading: readonly string[], rows: readonly (readonly string[])[], numeric: readonly number[]): string[] {
  const escape = (cell: string): string => cell.replaceAll('|', '\\|');
  const rule = heading.map((_, i) => (numeric.includes(i) ? '--:' : '---'));
  return [heading, rule, ...rows.map((row) => row.map(escape))].map((row) => `| ${row.join(' | ')} |`);
}

function sectionOf(record: BenchRecord, bounds: Bounds): string[] {
  const { device, versions, commit, date, method } = record;
  const ticks = device.tickNs === undefined ? 'no timestamp queries, wall time only' : `timestamps step by ${device.tickNs} ns`;
  const cold = method.coldBytes > 0 ? `${formatBytes(method.coldBytes)} written before each cold repetition` : 'caches as they are';
  return [
    `## ${device.name}, ${date.slice(0, 10)}`,
    '',
    `${describeDevice(record)}; commit ${commit}; ${ticks}; ${cold}. Copy ${figure(device.rates.copyGbps)} GB/s, products ` +
      `${device.rates.f16Tflops === undefined ? '' : `${figure(device.rates.f16Tflops)} TFLOP/s in f16, `}${figure(device.rates.f32Tflops)} in f32 (${device.rates.from}): what floors divide by.`,
    `Toggles: ${device.toggles.length === 0 ? 'none' : device.toggles.join(', ')}. Versions: ${Object.entries(versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(', ')}.`,
    '',
    ...targetsOf(record, bounds),
    ...propertyTable(record, bounds),
    ...masksOf(record),
    ...crossingsOf(record),
    ...everything(record),
  ];
}

function targetsOf(record: BenchRecord, bounds: Bounds): string[] {
  if (record.device.software) return [];
  const rows = TARGETS.map((target) => {
    const entry = record.entries.find(({ id }) => id === target.id);
    const ratio = entry?.ratio === undefined ? '-' : entry.ratio.toFixed(2);
    const peer = entry?.peer ? `${entry.peer.name}, ${figure(entry.peer.ms)} ms` : target.peer;
    const verdict = verdictOf(target, entry);
    return [
      `\`${target.id}\``,
      figure(entry?.ms),
      entry ? entry.error.toExponential(1) : '-',
      peer,
      ratio,
      String(target.atLeast),
      String(target.aim),
      verdict,
    ];
  });
  const missed = TARGETS.filter(
    (target) =>
      verdictOf(
        target,
        record.entries.find(({ id }) => id === target.id),
      ) === 'missed',
  );
  return [
    '### Targets',
    '',
    ...table(['what', 'ours, ms', 'error', 'peer', 'ratio', 'at least', 'aim', ''], rows, [1, 2, 4, 5, 6]),
    '',
    ...(missed.length === 0
      ? []
      : ['What bounds the misses:', '', ...missed.map(({ id }) => `- \`${id}\`: ${bounds[id] ?? 'not yet accounted for.'}`), '']),
  ];
}

/** How busy training steps keep the GPU: the sum of its kernels over the wall time of a step. */
function trainingOf(records: readonly TrainingRecord[]): string[] {
  const newest = [...records].sort((a, b) => a.date.localeCompare(b.date)).at(-1);
  if (!newest) return [];
  const rows = newest.entries.map(({ id, stepWallMs, stepGpuMs }) => {
    const busy = Math.min(1, stepGpuMs / stepWallMs);
    return [id, figure(stepWallMs), figure(stepGpuMs), percent(busy), busy >= 0.85 ? 'holds' : 'missed'];
  });
  return [
    '### Training steps',
    '',
    'The GPU is to be busy at least 85 % of a step. Steps of 32,768 tokens as the models were first trained; [training](training.md) has later ones.',
    '',
    ...table(['model', 'wall ms', 'GPU ms', 'busy', ''], rows, [1, 2, 3]),
    '',
  ];
}

function propertyTable(record: BenchRecord, bounds: Bounds): string[] {
  const properties = propertiesOf(record);
  const rows = properties.flatMap(({ what, wanted, found }) =>
    found ? [[what, wanted, found.text, found.holds ? 'holds' : 'missed']] : [],
  );
  if (rows.length === 0) return [];
  const missed = properties.flatMap(({ what, found }) =>
    found?.holds === false && bounds[what] !== undefined ? [`- ${what}: ${bounds[what]}`] : [],
  );
  return [
    '### Properties',
    '',
    ...table(['what', 'wanted', 'found', ''], rows, [2]),
    '',
    ...(missed.length === 0 || record.device.software ? [] : [...missed, '']),
  ];
}

function masksOf(record: BenchRecord): string[] {
  const factors = maskFactors(record);
  if (factors.length === 0) return [];
  const rows = factors.map(({ entry, factor }) => [
    `\`${entry.id}\``,
    figure(entry.mask?.area),
    percent(entry.mask?.density),
    percent(entry.mask?.listed),
    figure(entry.ms),
    figure(entry.tflops),
    factor.toFixed(2),
    entry.ratio === undefined ? '-' : entry.ratio.toFixed(2),
  ]);
  return [
    '### Masks',
    '',
    'Area: visible pairs a head, counted exactly. Listed: share of the tiles that the kernel walks. Factor: time over (listed share) x (time of the full mask).',
    '',
    ...earlierRows({ ...record, entries: factors.map(({ entry }) => entry) }, 'these rows'),
    ...table(['what', 'area', 'density', 'listed', 'ms', 'TFLOP/s', 'factor', 'ratio'], rows, [1, 2, 3, 4, 5, 6, 7]),
    '',
  ];
}

function crossingsOf(record: BenchRecord): string[] {
  const found = crossings(record);
  if (found.length === 0) return [];
  const rows = found.map(({ faster, than, tokens }) => [faster, than, figure(tokens)]);
  return ['### Crossover points', '', ...table(['faster', 'than', 'from tokens'], rows, [2]), ''];
}

/** What was timed while the GPU's clock was not up, or came down: such a time holds for nothing else. */
function slowClocks({ entries }: BenchRecord): string[] {
  const slow = entries.flatMap(({ id, clock = 1 }) => (clock < 0.9 ? [`- \`${id}\`: ${percent(clock)}`] : []));
  return slow.length === 0 ? [] : ['Clock of the multiprocessors below 90 % of the fastest seen, before or behind:', '', ...slow, ''];
}

/** Rows that an earlier run on such a device stands in for, its peers included; `name` says all of them at once. */
function earlierRows({ entries }: BenchRecord, name?: string): string[] {
  const commits = new Set(entries.flatMap(({ earlier }) => (earlier ? [earlier.commit] : [])));
  return [...commits].flatMap((commit) => {
    const ids = entries.flatMap(({ id, earlier }) => (earlier?.commit === commit ? [`\`${id}\``] : []));
    return [`Of an earlier run on such a device, commit ${commit}, their peers as well: ${name ?? ids.join(', ')}.`, ''];
  });
}

function everything(record: BenchRecord): string[] {
  const row = (entry: RecordEntry): string[] => [
    `\`${entry.id}\``,
    figure(entry.ms),
    `${figure(entry.quartiles[0])}-${figure(entry.quartiles[1])}`,
    figure(entry.warm?.ms),
    figure(entry.wallMs),
    figure(entry.tflops),
    figure(entry.gbps),
    percent(entry.floorShare),
    entry.bytes === undefined ? '-' : formatBytes(entry.bytes),
    entry.memory ? formatBytes(entry.memory.formula) : '-',
    entry.error.toExponential(1),
    [entry.peer, ...(entry.otherPeers ?? [])].flatMap((peer) => (peer ? [`${peer.name} ${figure(peer.ms)}`] : [])).join(', ') || '-',
    entry.ratio === undefined ? '-' : entry.ratio.toFixed(2),
  ];
  const heading = [
    'what',
    'ms',
    'quartiles',
    'warm ms',
    'wall ms',
    'TFLOP/s',
    'GB/s',
    'of floor',
    'peak',
    'formula',
    'error',
    'peers, ms',
    'ratio',
  ];
  return [
    '### Everything',
    '',
    ...table(heading, record.entries.map(row), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]),
    '',
    ...slowClocks(record),
    ...earlierRows(record),
    ...(record.failures.length === 0 ? [] : ['No result:', '', ...record.failures.map(({ id, why }) => `- \`${id}\`: ${why}`), '']),
  ];
}
