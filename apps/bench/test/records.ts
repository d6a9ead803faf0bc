import { type BenchRecord, type PeerRecord, type RecordEntry, SCHEMA } from '../src/record.js';

/** An entry of an id with likely figures. */
export function entry(id: string, changes: Partial<RecordEntry>): RecordEntry {
  return {
    id,
    shape: { tokens: 16 },
    dtype: 'f16',
    pass: 'forward',
    ms: 1,
    quartiles: [0.9, 1.1],
    repeats: 7,
    warm: { ms: 0.8, quartiles: [0.7, 0.9] },
    wallMs: 1.5,
    error: 1e-3,
    tflops: 12,
    gbps: 100,
    bytes: 1024,
    ...changes,
  };
}

/** A record of some entries. */
export function record(entries: readonly RecordEntry[]): BenchRecord {
  return {
    schema: SCHEMA,
    date: '2026-11-22T10:00:00.000Z',
    commit: 'abc',
    suite: 'kernels',
    device: {
      name: 'NVIDIA H100 80GB HBM3',
      driver: '580.159',
      software: false,
      tier: 'matrix',
      features: ['subgroups'],
      toggles: [],
      settings: 'shipped',
      tickNs: 32,
      rates: { copyGbps: 2900, f16Tflops: 200, f32Tflops: 30, from: 'ours' },
    },
    versions: { node: 'v20' },
    method: { coldBytes: 2 ** 28, warmUpMs: 500 },
    entries,
    failures: [],
  };
}

/** A record of peers. */
export function peers(
  entries: readonly { id: string; ms?: number; error?: number; name?: string }[],
  rates: PeerRecord['rates'] = {},
): PeerRecord {
  return {
    schema: 'heed-peers-1',
    device: { name: 'NVIDIA H100' },
    versions: { torch: '2.11' },
    rates,
    entries: entries.map(({ id, ms = 1, error = 1e-4, name = 'cuBLAS' }) => ({ id, name, version: '2.11', ms, error, tolerance: 2e-3 })),
    failures: [],
  };
}
