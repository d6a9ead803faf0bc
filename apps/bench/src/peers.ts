import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { BenchRecord, Failure, PeerFigure, PeerRecord } from './record.js';

const run = promisify(execFile);

/** A script that measures one JavaScript peer, and the packages that it takes; they are installed when the suite runs. */
interface ScriptPeer {
  readonly script: string;
  readonly packages: readonly string[];
}

const SCRIPTS: readonly ScriptPeer[] = [
  { script: 'tfjs', packages: ['@tensorflow/tfjs-core@4.22.0', '@tensorflow/tfjs-backend-webgpu@4.22.0'] },
  { script: 'jax', packages: ['@jax-js/jax@0.1.25'] },
  { script: 'ort', packages: ['onnxruntime-node@1.30.0'] },
];

/** What JavaScript peers are measured on: dense attention in f32. */
const DENSE = /^attention\/full\/f32\//;
const PEER_LIMIT_MS = 180_000;
const REPEATS = 7;
const TOLERANCE = 2e-4;

export interface PeerOptions {
  /** Folder of the scripts: `peers` beside this app, with `js` in it. */
  readonly folder: string;
  /** Folder that holds the sources of flash-linear-attention. */
  readonly fla: string | undefined;
  readonly say: (line: string) => void;
}

/** Runs every peer that this machine can run, on the ids of a record; the others say why not. */
export async function runPeers(record: BenchRecord, options: PeerOptions): Promise<PeerRecord[]> {
  return [await pythonPeers(record, options), await scriptPeers(record, options)];
}

const empty = (record: BenchRecord, failures: readonly Failure[]): PeerRecord => ({
  schema: 'heed-peers-1',
  device: { name: record.device.name },
  versions: {},
  entries: [],
  failures,
});

const reasonOf = (error: unknown): string => {
  const { stderr } = error as { stderr?: string };
  const lines = (stderr ?? '').trim().split('\n');
  return (lines.at(-1) ?? '') || (error instanceof Error ? error.message : String(error)).split('\n', 1).join('');
};

async function pythonPeers(record: BenchRecord, { folder, fla, say }: PeerOptions): Promise<PeerRecord> {
  const missing = await run('python3', ['-c', 'import torch, triton; assert torch.cuda.is_available(), "torch finds no CUDA device"']).then(
    () => undefined,
    reasonOf,
  );
  if (missing !== undefined)
    return empty(record, [{ id: 'peers/python', why: `torch, FlexAttention and flash-linear-attention did not run: ${missing}` }]);
  const work = await mkdtemp(join(tmpdir(), 'heed-peers-'));
  try {
    const [ours, theirs] = [join(work, 'ours.json'), join(work, 'peers.json')];
    await writeFile(ours, JSON.stringify(record));
    const only = [
      'matmul',
      'sdpa',
      'decode',
      'flex',
      ...(fla === undefined ? [] : ['fla']),
      ...(record.entries.some(({ mask }) => mask) ? ['masks'] : []),
    ];
    say(`peers in Python: ${only.join(', ')}`);
    const args = [
      join(folder, 'peers.py'),
      '--json',
      theirs,
      '--only',
      only.join(','),
      '--masks',
      ours,
      ...(fla === undefined ? [] : ['--fla', fla]),
    ];
    await run('python3', args, { maxBuffer: 1 << 26 });
    const found = JSON.parse(await readFile(theirs, 'utf8')) as PeerRecord;
    if (fla !== undefined) return found;
    const without: Failure = { id: 'peers/fla', why: 'flash-linear-attention did not run: name the folder of its sources with --fla' };
    return { ...found, failures: [...found.failures, without] };
  } catch (error) {
    return empty(record, [{ id: 'peers/python', why: reasonOf(error) }]);
  } finally {
    await rm(work, { recursive: true });
  }
}

async function scriptPeers(record: BenchRecord, options: PeerOptions): Promise<PeerRecord> {
  const dense = record.entries.filter(({ id }) => DENSE.test(id));
  if (dense.length === 0) return empty(record, []);
  const entries: (PeerFigure & { id: string; tolerance: number })[] = [];
  const failures: Failure[] = [];
  for (const peer of SCRIPTS) {
    const place = await prepare(peer, options).catch((error: unknown) => ({ why: reasonOf(error) }));
    for (const { id, shape } of dense) {
      options.say(`peer ${peer.script}: ${id}`);
      const found = 'why' in place ? place : await runScript(place.script, [shape['tokens'], shape['heads'], shape['headDim'], REPEATS]);
      if ('why' in found) failures.push({ id, why: `${peer.script} did not run: ${found.why}` });
      else entries.push({ ...found, id, tolerance: TOLERANCE, clock: 'wall' });
    }
  }
  return { ...empty(record, failures), entries, versions: Object.fromEntries(entries.map(({ name, version }) => [name, version])) };
}

/**
 * A script ready to run: bundled with what it needs (`js/<name>.bundle.mjs`, for machines without a network), or copied into a folder
 * where its packages are installed.
 */
async function prepare({ script, packages }: ScriptPeer, { folder, say }: PeerOptions): Promise<{ script: string }> {
  const bundled = join(folder, 'js', `${script}.bundle.mjs`);
  if (existsSync(bundled)) return { script: bundled };
  const place = join(folder, 'installed', script);
  await mkdir(place, { recursive: true });
  for (const name of await readdir(join(folder, 'js'))) await copyFile(join(folder, 'js', name), join(place, name));
  await writeFile(join(place, 'package.json'), JSON.stringify({ private: true, type: 'module' }));
  say(`installing ${packages.join(', ')}`);
  // the runtime of ONNX would otherwise download CUDA libraries; a postinstall has no other work here
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' };
  await run('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', 'webgpu@0.6.2', ...packages], {
    cwd: place,
    env,
    timeout: PEER_LIMIT_MS,
  });
  return { script: join(place, `${script}.mjs`) };
}

async function runScript(script: string, args: readonly unknown[]): Promise<Omit<PeerFigure, 'clock'> | { why: string }> {
  try {
    const { stdout } = await run(process.execPath, [script, ...args.map(String)], { timeout: PEER_LIMIT_MS, maxBuffer: 1 << 26 });
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Omit<PeerFigure, 'clock'>;
  } catch (error) {
    return { why: reasonOf(error) };
  }
}
