import type { DemoRecord, ModelRecord } from '../src/record.js';
import { bitsByPosition } from '../src/record.js';

interface Shape {
  readonly name: string;
  readonly bits: number;
  readonly msPerToken: (tokens: number) => number;
  readonly stateBytes: (tokens: number) => number;
  /** Bits added beyond the trained length, a doubling. */
  readonly drift: number;
}

const SHAPES: readonly Shape[] = [
  { name: 'softmax', bits: 1.82, msPerToken: (n) => 0.02 + n / 40_000, stateBytes: (n) => n * 8192, drift: 0.35 },
  { name: 'lightning2', bits: 1.9, msPerToken: () => 0.021, stateBytes: () => 262_144, drift: 0 },
  { name: 'neighborhood', bits: 1.86, msPerToken: () => 0.025, stateBytes: (n) => Math.min(n, 256) * 8192, drift: 0 },
  { name: 'zeta', bits: 1.95, msPerToken: (n) => 0.03 + Math.log2(n) / 900, stateBytes: (n) => n * 5200, drift: 0.03 },
];

/** A made-up record of four models whose costs grow as theirs do. */
export function madeUpRecord(tokens = 65_536): DemoRecord {
  return {
    date: '2026-11-22T10:15:30.000Z',
    versions: { '@heed/core': '0.1.0', node: 'v20.20.2', webgpu: '0.6.2' },
    device: {
      name: 'llvmpipe (LLVM 19.1.4, 256 bits)',
      driver: 'Mesa 25.0.7',
      tier: 'subgroups',
      software: true,
      features: ['shader-f16', 'subgroups'],
    },
    text: { name: 'Moby-Dick, chapters 132 to 135', bytes: 74_131, tokens },
    passage: 'and the great shroud of the sea rolled on as it rolled five',
    seed: 1,
    models: SHAPES.map((shape) => model(shape, tokens)),
  };
}

function model({ name, bits, msPerToken, stateBytes, drift }: Shape, tokens: number): ModelRecord {
  const lengths = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536].filter((length) => length <= tokens);
  const perToken = Float32Array.from(
    { length: tokens },
    (_, i) =>
      bits + 2 / Math.sqrt(1 + i) + drift * Math.max(0, Math.log2(i / 2048)) + Math.sin(i * 12.9898) * 0.9 + 0.1 * Math.sin(i / 900),
  );
  return {
    name,
    parameters: 3_345_664,
    trainedContext: 2048,
    bitsPerByte: perToken.reduce((sum, value) => sum + value, 0) / tokens,
    prefillTokensPerSecond: 1000 / msPerToken(tokens),
    decodeTokensPerSecond: 140 / msPerToken(tokens) / 20,
    peakBytes: 40 * 2 ** 20 + tokens * 4096,
    stateBytes: stateBytes(tokens),
    continuation: `hundred years ago, and the ${name} stood upon the deck; “Avast!” cried Ahab.\n\n“There she blows!”`,
    curve: lengths.map((length) => ({
      tokens: length,
      prefillMs: length * msPerToken(length),
      peakBytes: 40 * 2 ** 20 + length * 4096,
      stateBytes: stateBytes(length),
      decodeMsPerToken: 7 * msPerToken(length) + 1,
    })),
    bitsByPosition: bitsByPosition(perToken),
  };
}
