/** Everything that one run of the demo found out; `--json` writes it, the table and the report show it. */
export interface DemoRecord {
  /** When the run began, ISO 8601. */
  readonly date: string;
  /** Versions of Heed, node, webgpu and so on, by name. */
  readonly versions: Readonly<Record<string, string>>;
  readonly device: DeviceRecord;
  readonly text: TextRecord;
  /** The last bytes of what was read, as text: what the models write on from. */
  readonly passage: string;
  readonly seed: number;
  readonly models: readonly ModelRecord[];
}

/** The device that did the work. */
export interface DeviceRecord {
  readonly name: string;
  readonly driver: string;
  readonly tier: 'baseline' | 'subgroups' | 'matrix';
  /** No GPU: the same program on the processor. */
  readonly software: boolean;
  readonly features: readonly string[];
}

/** What was read. */
export interface TextRecord {
  readonly name: string;
  /** Length of the whole document. */
  readonly bytes: number;
  /** Bytes read, one token each. */
  readonly tokens: number;
}

/** What one model did. */
export interface ModelRecord {
  readonly name: string;
  readonly parameters: number;
  /** Tokens of a training sequence: beyond them a model extrapolates. */
  readonly trainedContext: number;
  /** Mean over the tokens read, in bits; lower is better. */
  readonly bitsPerByte: number;
  readonly prefillTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
  /** Most device memory held at once, weights included. */
  readonly peakBytes: number;
  /** State or cache after the last token read. */
  readonly stateBytes: number;
  /** What the model wrote on from the passage. */
  readonly continuation: string;
  /** Cost at growing lengths, ascending; the last one is the whole reading. */
  readonly curve: readonly LengthPoint[];
  /** Ascending; see {@link bitsByPosition}. */
  readonly bitsByPosition: readonly PositionPoint[];
}

/** Cost of reading a text of this length. */
export interface LengthPoint {
  readonly tokens: number;
  readonly prefillMs: number;
  readonly peakBytes: number;
  readonly stateBytes: number;
  /** Time of one more token behind a text of this length. */
  readonly decodeMsPerToken: number;
}

/** Mean bits of a stretch of the text. */
export interface PositionPoint {
  /** Middle of the stretch, in tokens from the start. */
  readonly position: number;
  readonly bits: number;
}

/**
 * Means over equal stretches of the text: what a plot can show of tens of thousands of positions.
 * @param bits of each token, in order; the first stands for position 0
 * @param stretches at most so many; default 128. The last stretch takes what is left over
 * @throws RangeError when stretches is no positive integer
 */
export function bitsByPosition(bits: ArrayLike<number>, stretches: number = 128): PositionPoint[] {
  if (!Number.isInteger(stretches) || stretches < 1) throw new RangeError(`record: ${stretches} stretches; ask for 1 or more`);
  const length = Math.max(1, Math.ceil(bits.length / stretches));
  const points: PositionPoint[] = [];
  for (let start = 0; start < bits.length; start += length) {
    const end = Math.min(bits.length, start + length);
    let sum = 0;
    for (let i = start; i < end; i++) sum += bits[i] ?? 0;
    points.push({ position: (start + end - 1) / 2, bits: sum / (end - start) });
  }
  return points;
}
