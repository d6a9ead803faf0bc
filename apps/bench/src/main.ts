import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { HeedError, withDevice } from '@heed/core';
import { startProgress } from '@heed/lab/progress';
import type { Suite } from './entry.js';
import { type BenchOptions, parseOptions, type SuiteName } from './options.js';
import { type Bounds, renderPage, type TrainingRecord } from './page.js';
import { type BenchRecord, joinRecords, mergePeers, type PeerRecord, recordName, SCHEMA } from './record.js';
import { runPeers } from './peers.js';
import { runSuites } from './session.js';
import { describeDevice, resultTable } from './terminal.js';
import { UsageError } from './usage.js';
import { commitOf, versionsOf } from './versions.js';

const MEMBERS: Readonly<Record<SuiteName, readonly Suite[]>> = {
  quick: ['quick'],
  kernels: ['kernels'],
  masks: ['masks'],
  scaling: ['scaling'],
  decode: ['decode'],
  overhead: [],
  peers: ['kernels'],
  all: ['kernels', 'masks', 'scaling', 'decode'],
};

async function takeRecord(options: BenchOptions): Promise<BenchRecord> {
  const [commit, versions] = await Promise.all([commitOf(), versionsOf()]);
  const { suite, tier, unchecked } = options;
  return withDevice(
    async (device) => {
      const bar = startProgress({ label: `bench ${suite}`, total: 100, unit: '%' });
      try {
        return await runSuites(device, {
          name: suite,
          suites: MEMBERS[suite],
          overhead: suite === 'overhead' || suite === 'all' || suite === 'quick',
          sizes: options.sizes,
          only: options.only,
          // two minutes at most, on whatever processor
          limitSeconds: options.limit ?? (suite === 'quick' && device.isSoftware ? 90 : undefined),
          commit,
          versions,
          settings: unchecked ? 'unchecked' : 'shipped',
          progress: (done, total, note) => bar.update(Math.floor((100 * done) / total), note),
        });
      } finally {
        bar.end();
      }
    },
    { exactTimestamps: true, ...(tier && { tier }), ...(unchecked && { unchecked }) },
  );
}

const readJson = async (path: string): Promise<unknown> => JSON.parse(await readFile(path, 'utf8'));

async function main(args: readonly string[]): Promise<void> {
  const options = parseOptions(args);
  if ('help' in options) return console.log(options.help);
  const own =
    options.merge.length > 0 ? joinRecords((await Promise.all(options.merge.map(readJson))) as BenchRecord[]) : await takeRecord(options);
  const named = (await Promise.all(options.peers.map(readJson))) as PeerRecord[];
  const folder = process.env['HEED_PEERS'] ?? join(import.meta.dirname, '../peers');
  const ran = options.suite === 'peers' ? await runPeers(own, { folder, fla: options.fla, say: (line) => console.error(line) }) : [];
  const record = mergePeers(own, [...named, ...ran]);
  console.log(describeDevice(record));
  console.log(resultTable(record));
  for (const { id, why } of record.failures) console.log(`no result: ${id}: ${why}`);
  const json = `${JSON.stringify(record, undefined, 1)}\n`;
  if (options.json !== undefined) await write(options.json, json);
  if (options.html !== undefined) await write(options.html, (await import('./report.js')).renderReport(record));
  if (options.docs !== undefined) await writeDocs(options.docs, recordName(record), json);
}

/** Adds a record to a folder and renders the folder's page again. */
async function writeDocs(folder: string, name: string, json: string): Promise<void> {
  await write(join(folder, name), json);
  const names = (await readdir(folder)).filter((file) => file.endsWith('.json'));
  const found = (await Promise.all(names.map((file) => readJson(join(folder, file))))) as (BenchRecord | TrainingRecord | Bounds)[];
  const bounds = names.includes('bounds.json') ? ((await readJson(join(folder, 'bounds.json'))) as Bounds) : {};
  const records = found.filter((one): one is BenchRecord => one.schema === SCHEMA);
  const training = found.filter((one): one is TrainingRecord => one.schema === 'heed-training-1');
  await write(join(folder, 'kernels.md'), renderPage(records, bounds, training));
}

async function write(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, text);
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const plain = error instanceof UsageError || error instanceof HeedError;
  console.error(plain ? error.message : error);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
