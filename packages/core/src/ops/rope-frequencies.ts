import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import type { Operand } from '../kernel/bindings.js';
import { constantTable } from '../kernel/constants.js';

/** How rotary frequencies are stretched for contexts longer than those trained on. */
export type RopeScaling =
  /** Positions divided by `factor` (Chen et al. 2023, arXiv 2306.15595). */
  | { type: 'linear'; factor: number }
  /** Base raised so that the slowest frequency is divided by `factor` ("NTK-aware"). */
  | { type: 'ntk'; factor: number }
  /** Slow frequencies divided by `factor`, fast ones kept, a linear blend between (Llama 3.1). Defaults 1 and 4. */
  | { type: 'llama3'; factor: number; originalTokens: number; lowFrequencyFactor?: number; highFrequencyFactor?: number }
  /**
   * Blend by the number of turns within the original context (Peng et al. 2023, arXiv 2309.00071, section 3.2), and both
   * rotated halves times `magnitude` (section 3.4, default 0.1 ln factor + 1). `betaFast` default 32, `betaSlow` 1.
   */
  | { type: 'yarn'; factor: number; originalTokens: number; betaFast?: number; betaSlow?: number; magnitude?: number };

/** Radians a position for each pair of a head of `rotaryDim` rotated elements, and the factor on what is rotated. */
export interface RopeFrequencies {
  radians: Float64Array;
  magnitude: number;
}

/** theta_i = base^(-2 i / rotaryDim) (Su et al. 2021, arXiv 2104.09864, eq. 15), scaled. */
export function ropeFrequencies(rotaryDim: number, base: number, scaling?: RopeScaling): RopeFrequencies {
  const pairs = rotaryDim / 2;
  const stretched = scaling?.type === 'ntk' && rotaryDim > 2 ? base * scaling.factor ** (rotaryDim / (rotaryDim - 2)) : base;
  const radians = Float64Array.from({ length: pairs }, (_, i) => stretched ** ((-2 * i) / rotaryDim));
  if (scaling === undefined || scaling.type === 'ntk') return { radians, magnitude: 1 };
  const { factor } = scaling;
  if (scaling.type === 'linear') return { radians: radians.map((r) => r / factor), magnitude: 1 };
  const blend = (r: number, kept: number): number => (r / factor) * (1 - kept) + r * kept;
  if (scaling.type === 'llama3') {
    const { originalTokens, lowFrequencyFactor: low = 1, highFrequencyFactor: high = 4 } = scaling;
    const kept = (r: number): number => clamp01(((originalTokens * r) / (2 * Math.PI) - low) / (high - low));
    return { radians: radians.map((r) => blend(r, kept(r))), magnitude: 1 };
  }
  const { originalTokens, betaFast = 32, betaSlow = 1 } = scaling;
  const pairOfTurns = (turns: number): number => (rotaryDim * Math.log(originalTokens / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  const first = Math.max(Math.floor(pairOfTurns(betaFast)), 0);
  const last = Math.min(Math.ceil(pairOfTurns(betaSlow)), rotaryDim - 1);
  const width = first === last ? 0.001 : last - first;
  return { radians: radians.map((r, i) => blend(r, 1 - clamp01((i - first) / width))), magnitude: ropeMagnitude(scaling) };
}

/** The factor on what is rotated: 1 but for YaRN. */
export function ropeMagnitude(scaling: RopeScaling | undefined): number {
  if (scaling?.type !== 'yarn') return 1;
  return scaling.magnitude ?? (scaling.factor <= 1 ? 1 : 0.1 * Math.log(scaling.factor) + 1);
}

function clamp01(x: number): number {
  return Math.min(1, Math.max(0, x));
}

/** @throws HeedError INVALID_ARGUMENT when a number is out of range */
export function checkScaling(scaling: RopeScaling | undefined): void {
  if (scaling === undefined) return;
  for (const [name, value] of Object.entries(scaling)) {
    if (name === 'type') continue;
    if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value))
      throw new HeedError('INVALID_ARGUMENT', `rope: scaling.${name} is ${String(value)}; use a number above 0`);
  }
  if (scaling.type === 'llama3' && (scaling.highFrequencyFactor ?? 4) <= (scaling.lowFrequencyFactor ?? 1))
    throw new HeedError('INVALID_ARGUMENT', 'rope: scaling.highFrequencyFactor must be above lowFrequencyFactor');
}

/** Turns a position as 64-bit fixed point, high and low word: whole turns fall off by themselves when multiplied. */
function turnWords(radians: Float64Array): Uint32Array {
  const words = new Uint32Array(2 * radians.length);
  radians.forEach((r, i) => {
    const turns = r / (2 * Math.PI);
    const high = (turns - Math.floor(turns)) * 2 ** 32;
    words[2 * i] = Math.floor(high);
    words[2 * i + 1] = Math.floor((high - Math.floor(high)) * 2 ** 32);
  });
  return words;
}

/** The table of one setting, made once a device. */
export function turnTable(device: Device, rotaryDim: number, base: number, scaling: RopeScaling | undefined): Operand {
  const key = `rotary frequencies ${rotaryDim} ${base} ${scaling ? JSON.stringify(scaling) : ''}`;
  return constantTable(device, key, () => turnWords(ropeFrequencies(rotaryDim, base, scaling).radians));
}
