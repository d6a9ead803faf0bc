import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { HeedError, withDevice } from '@heed/core';
import { startProgress } from '@heed/lab/progress';
import type { Suite } from './entry.js';
import { type BenchOptions, parseOptions, type SuiteName } from './options.js';
import { type BenchRecord, joinRecords, mergePeers, type PeerRecord } from './record.js';
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
  const record = mergePeers(own, (await Promise.all(options.peers.map(readJson))) as PeerRecord[]);
  console.log(describeDevice(record));
  console.log(resultTable(record));
  for (const { id, why } of record.failures) console.log(`no result: ${id}: ${why}`);
  if (options.json !== undefined) await write(options.json, `${JSON.stringify(record, undefined, 1)}\n`);
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
