import type { MaskFigures, Pass } from './entry.js';
import { UsageError } from './usage.js';

export const SCHEMA = 'heed-bench-1';

/** A peer's figure for one of our ids, on the same numbers, on the same device. */
export interface PeerFigure {
  readonly name: string;
  readonly version: string;
  /** Median with cold caches. */
  readonly ms: number;
  readonly quartiles?: readonly [number, number];
  /** The same with warm caches. */
  readonly warmMs?: number;
  readonly error: number;
  /** `wall`: a peer without GPU timestamps; its ratio is against our wall time. Default: GPU time. */
  readonly clock?: 'wall';
  /** What should be known about it. */
  readonly note?: string;
}

/** The least time that an algorithm could take on this device. */
export interface Floor {
  readonly ms: number;
  readonly why: string;
  readonly algorithm: string;
  readonly bytes: number;
  readonly flops: number;
  readonly units: 'f16' | 'f32';
}

/** One line of a record: a time that came with a right result. */
export interface RecordEntry {
  readonly id: string;
  readonly shape: Readonly<Record<string, number | string>>;
  readonly dtype: 'f16' | 'f32';
  readonly pass: Pass;
  /** Median GPU time with cold caches, in milliseconds (wall time on a device without timestamps). */
  readonly ms: number;
  readonly quartiles: readonly [number, number];
  readonly repeats: number;
  /** The same with warm caches. */
  readonly warm?: { readonly ms: number; readonly quartiles: readonly [number, number] };
  /** Median from the first record to the end of the GPU's work; of a backward pass with its forward. */
  readonly wallMs: number;
  /** The clock of the multiprocessors while it was timed, as a share of the fastest that the run saw; the slower of before and behind. */
  readonly clock?: number;
  /** The run that it is of, where that is not the record's: records were joined. */
  readonly earlier?: { readonly date: string; readonly commit: string };
  /** Worst relative error of sampled rows against float64; see `rowError`. */
  readonly error: number;
  /** Unmasked work over `ms`. */
  readonly tflops?: number;
  /** Least traffic of the definition over `ms`. */
  readonly gbps?: number;
  /** Most bytes of live tensors during a run, inputs included. */
  readonly bytes?: number;
  readonly memory?: { readonly formula: number; readonly why: string };
  readonly mask?: MaskFigures;
  readonly peer?: PeerFigure;
  /** Further peers on the same id. */
  readonly otherPeers?: readonly PeerFigure[];
  /** Peer's median over ours: above 1 we are faster. */
  readonly ratio?: number;
  readonly floor?: Floor;
  /** floor / ours. */
  readonly floorShare?: number;
  readonly series?: { readonly name: string; readonly tokens: number };
  /** GPU time of each kernel in one run with warm caches, each dispatch timed by itself. */
  readonly kernels?: readonly { readonly kernel: string; readonly calls: number; readonly ms: number }[];
}

/** What gave no result, with its reason. */
export interface Failure {
  readonly id: string;
  readonly why: string;
}

/** The device that a record was taken on; toggles count among its properties. */
export interface DeviceFigures {
  readonly name: string;
  readonly driver: string;
  readonly software: boolean;
  readonly tier: string;
  readonly features: readonly string[];
  readonly toggles: readonly string[];
  /** `shipped`: robustness and validation on. */
  readonly settings: 'shipped' | 'unchecked';
  /** Step of the timestamps: what all differences seen are a multiple of. */
  readonly tickNs?: number;
  /** Measured in this run: what floors divide by. */
  readonly rates: { readonly copyGbps: number; readonly f16Tflops?: number; readonly f32Tflops: number; readonly from: string };
}

/** CPU side: what a dispatch costs to record, and what compiles take. */
export interface OverheadFigures {
  /** Microseconds of CPU a dispatch in a chain of small ops, for each pass over the chain. */
  readonly chain: { readonly ops: number; readonly microsecondsADispatch: readonly number[]; readonly gpuMicrosecondsADispatch?: number };
  /** Whether a decode step left the live bytes as they were, and what its peak was above them. */
  readonly decode?: { readonly steps: number; readonly liveBytesGrown: number };
}

/** A record: everything that a run found out. */
export interface BenchRecord {
  readonly schema: typeof SCHEMA;
  readonly date: string;
  readonly commit: string;
  readonly suite: string;
  readonly device: DeviceFigures;
  readonly versions: Readonly<Record<string, string>>;
  readonly method: { readonly coldBytes: number; readonly warmUpMs: number };
  readonly entries: readonly RecordEntry[];
  readonly failures: readonly Failure[];
  /** Compile time of every pipeline that the run made. */
  readonly compiles?: readonly { readonly kernel: string; readonly ms: number }[];
  readonly overhead?: OverheadFigures;
  /** Bytes that the pool kept over the most that was live. */
  readonly pool?: { readonly peakBytes: number; readonly pooledBytes: number };
}

/** What a script for peers writes. */
export interface PeerRecord {
  readonly schema: 'heed-peers-1';
  readonly device: { readonly name: string };
  readonly versions: Readonly<Record<string, string>>;
  /** Measured by the peers: matrix products at their best, for floors. */
  readonly rates?: { readonly f16Tflops?: number; readonly f32Tflops?: number; readonly copyGbps?: number };
  readonly entries: readonly (PeerFigure & { readonly id: string; readonly tolerance: number })[];
  readonly failures: readonly Failure[];
}

/** Joins our record with records of peers: the fastest peer of an id whose result is right is the one that the ratio is against. */
export function mergePeers(record: BenchRecord, peers: readonly PeerRecord[]): BenchRecord {
  const figures = new Map<string, PeerFigure[]>();
  const failures: Failure[] = [...record.failures];
  for (const peer of peers) {
    failures.push(...peer.failures);
    for (const { id, tolerance, ...figure } of peer.entries) {
      if (figure.error <= tolerance) figures.set(id, [...(figures.get(id) ?? []), figure]);
      else failures.push({ id, why: `${figure.name}: error ${figure.error.toExponential(1)} is over ${tolerance}` });
    }
  }
  const entries = record.entries.map((entry) => {
    const [peer, ...others] = (figures.get(entry.id) ?? []).sort(fastestFirst);
    if (!peer) return entry;
    return {
      ...entry,
      peer,
      ...(others.length > 0 && { otherPeers: others }),
      ratio: peer.ms / (peer.clock === 'wall' ? entry.wallMs : entry.ms),
    };
  });
  const merged: BenchRecord = {
    ...record,
    versions: Object.assign({}, ...peers.map(({ versions }) => versions), record.versions),
    entries,
    failures,
  };
  return withFloors(merged, peers);
}

/** GPU times before wall times, which hold more. */
function fastestFirst(a: PeerFigure, b: PeerFigure): number {
  return Number(a.clock === 'wall') - Number(b.clock === 'wall') || a.ms - b.ms;
}

/** `2026-11-22-nvidia-h100-80gb-hbm3.json`, with the setting where it is not the shipped one. */
export function recordName({ date, device }: Pick<BenchRecord, 'date' | 'device'>): string {
  const slug = device.name
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, '-')
    .replaceAll(/^-|-$/g, '');
  return `${date.slice(0, 10)}-${slug}${device.settings === 'shipped' ? '' : `-${device.settings}`}.json`;
}

/** Several records of one device as one: the later one's figures where ids meet. */
export function joinRecords(records: readonly BenchRecord[]): BenchRecord {
  const last = records.at(-1);
  if (!last) throw new UsageError('bench: there is no record to join; name files behind --merge');
  const other = records.find(({ device }) => device.name !== last.device.name || device.settings !== last.device.settings);
  if (other)
    throw new UsageError(
      `bench: records of "${other.device.name}" (${other.device.settings}) and "${last.device.name}" (${last.device.settings}) do not join; give records of one device and setting`,
    );
  const entries = new Map(records.flatMap((record) => entriesOf(record, last).map((entry) => [entry.id, entry] as const)));
  const failures = records.flatMap((record) => record.failures).filter(({ id }) => !entries.has(id));
  const compiles = new Map(records.flatMap((record) => (record.compiles ?? []).map((one) => [one.kernel, one] as const)));
  const overhead = [...records].reverse().find((record) => record.overhead)?.overhead;
  return {
    ...last,
    suite: [...new Set(records.map(({ suite }) => suite))].join(', '),
    entries: [...entries.values()],
    failures,
    compiles: [...compiles.values()].sort((a, b) => b.ms - a.ms),
    ...(overhead && { overhead }),
  };
}

/** Entries of a record that is joined to `last`; those of another commit say which. */
function entriesOf({ entries, date, commit }: BenchRecord, last: BenchRecord): readonly RecordEntry[] {
  return commit === last.commit ? entries : entries.map((entry) => ({ ...entry, earlier: { date, commit } }));
}

/** Floors with the best rates that anybody reached on this device in this run. */
function withFloors(record: BenchRecord, peers: readonly PeerRecord[]): BenchRecord {
  const most = (of: 'f16Tflops' | 'f32Tflops' | 'copyGbps'): number => Math.max(0, ...peers.map(({ rates }) => rates?.[of] ?? 0));
  const { rates } = record.device;
  const better = {
    copyGbps: Math.max(rates.copyGbps, most('copyGbps')),
    ...(rates.f16Tflops !== undefined && { f16Tflops: Math.max(rates.f16Tflops, most('f16Tflops')) }),
    f32Tflops: Math.max(rates.f32Tflops, most('f32Tflops')),
    from: most('f16Tflops') > (rates.f16Tflops ?? 0) ? 'the best of ours and the peers, same run' : rates.from,
  };
  const entries = record.entries.map((entry) => {
    if (!entry.floor) return entry;
    const floor = floorOf(entry.floor, better);
    return { ...entry, floor, floorShare: floor.ms / entry.ms };
  });
  return { ...record, device: { ...record.device, rates: better }, entries };
}

const short = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

/** The time under which an algorithm cannot come at measured rates: bytes at copy speed, or operations at the speed of matrix products. */
export function floorOf(
  { algorithm, bytes, flops, units }: Pick<Floor, 'algorithm' | 'bytes' | 'flops' | 'units'>,
  rates: DeviceFigures['rates'],
): Floor {
  const tflops = (units === 'f16' ? rates.f16Tflops : undefined) ?? rates.f32Tflops;
  const memoryMs = bytes / (rates.copyGbps * 1e6);
  const computeMs = flops / (tflops * 1e9);
  const ms = Math.max(memoryMs, computeMs);
  const bound =
    memoryMs >= computeMs
      ? `${short(bytes / 1e6)} MB at ${short(rates.copyGbps)} GB/s`
      : `${short(flops / 1e9)} GFLOP at ${short(tflops)} TFLOP/s`;
  return { ms, why: `${algorithm}: ${bound} (${rates.from})`, algorithm, bytes, flops, units };
}
