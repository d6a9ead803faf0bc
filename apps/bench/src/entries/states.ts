import { type Device, scope, slice, type Tensor } from '@heed/core';
import { basedStart, basedStep } from '@heed/linear/based';
import { decayFromSlopes, lightning2Slopes, lightning2Start, lightning2Step } from '@heed/linear/lightning2';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { rowError, worst } from '../samples.js';
import { TOLERANCE } from './attention.js';

// One token of many streams at once: bound by the bytes of their states, each read and written once.

interface Setting {
  readonly batch: number;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly dtype: 'f16' | 'f32';
}

interface Technique {
  readonly name: string;
  /** f32 elements of a head's state. */
  readonly stateOf: (setting: Setting) => number;
  /** Operations of a head's token beside those on q, k and v: of decay, update and read-out. */
  readonly flopsOf: (setting: Setting) => number;
  readonly start: (device: Device, setting: Setting) => { step(q: Tensor, k: Tensor, v: Tensor): Tensor; dispose(): void };
  /** Weight of a token in the sum of a head, `age` tokens later, and whether sums are divided by their weights. */
  readonly weight: (setting: Setting, head: number) => (score: number, age: number) => number;
  readonly normalised: boolean;
}

const slopes = ({ heads }: Setting): number[] => Array.from(decayFromSlopes(lightning2Slopes({ heads })), Number);

const lightning2: Technique = {
  name: 'lightning2',
  stateOf: ({ keyDim, valueDim }) => keyDim * valueDim,
  flopsOf: ({ keyDim, valueDim }) => 5 * keyDim * valueDim,
  start(device, setting) {
    const { batch, heads, keyDim, valueDim } = setting;
    const state = lightning2Start(device, { batch, heads, keyDim, valueDim, decay: slopes(setting) });
    return { step: (q, k, v) => lightning2Step(q, k, v, state), dispose: () => state.dispose() };
  },
  weight(setting, head) {
    const rate = slopes(setting)[head] as number;
    return (score, age) => score * Math.exp(rate * age);
  },
  normalised: false,
};

const based: Technique = {
  name: 'based',
  stateOf: ({ keyDim, valueDim }) => (1 + keyDim + (keyDim * (keyDim + 1)) / 2) * (valueDim + 1),
  flopsOf: ({ keyDim, valueDim }) => 4 * (1 + keyDim + (keyDim * (keyDim + 1)) / 2) * (valueDim + 1),
  start(device, { batch, heads, keyDim, valueDim }) {
    const state = basedStart(device, { batch, heads, featureDim: keyDim, valueDim });
    return { step: (q, k, v) => basedStep(q, k, v, state), dispose: () => state.dispose() };
  },
  weight({ keyDim }) {
    return (score) => {
      const s = score / Math.sqrt(keyDim);
      return 1 + s + (s * s) / 2;
    };
  },
  normalised: true,
};

/** Tokens that a stream has seen before the one that is timed. */
const SEEN = 5;

function stateStep(technique: Technique, setting: Setting): Entry {
  const { batch, heads, keyDim, valueDim, dtype } = setting;
  const size = dtype === 'f16' ? 2 : 4;
  const state = batch * heads * technique.stateOf(setting) * 4;
  const rows = batch * heads * 2 * (keyDim + valueDim) * size;
  const dims = keyDim === valueDim ? `d${keyDim}` : `f${keyDim}d${valueDim}`;
  return {
    id: `state/${technique.name}/${dtype}/b${batch}h${heads}/${dims}`,
    shape: { batch, tokens: 1, heads, keyDim, valueDim },
    dtype,
    pass: 'decode',
    work: {
      algorithm: 'every state read and written once, q, k, v read once, out written once',
      bytes: 2 * state + rows,
      flops: batch * heads * technique.flopsOf(setting),
      units: 'f32',
    },
    memory: { bytes: state + (rows / 2) * (SEEN + 1) * 2, why: 'the states, and q, k, v and out of the tokens so far' },
    tolerance: TOLERANCE[dtype].forward,
    open: (device) => open(device, technique, setting),
  };
}

function open(device: Device, technique: Technique, setting: Setting): Opened {
  const { batch, heads, keyDim, valueDim, dtype } = setting;
  const make = (name: string, dim: number): Tensor => input(device, name, [batch, SEEN + 1, heads, dim], { dtype });
  const all = [make('q', keyDim), make('k', keyDim), make('v', valueDim)] as const;
  const stream = technique.start(device, setting);
  const tokens = (first: number, end: number): [Tensor, Tensor, Tensor] =>
    all.map((x) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
  scope(() => stream.step(...tokens(0, SEEN)).dispose());
  const last = tokens(SEEN, SEEN + 1);
  let steps = 0;
  return {
    run() {
      steps++;
      return [stream.step(...last)];
    },
    async sample([out]) {
      const seen = steps;
      const values = Float64Array.from(await (out as Tensor).read(), Number);
      const places = [
        [0, 0],
        [batch >> 1, heads - 1],
        [batch - 1, heads >> 1],
      ] as const;
      return () =>
        worst(
          places.map(([entry, head]) => {
            const at = (entry * heads + head) * valueDim;
            return rowError(values.subarray(at, at + valueDim), expectedRow(technique, setting, entry, head, seen));
          }),
        );
    },
    dispose() {
      stream.dispose();
      for (const t of [...all, ...last]) t.dispose();
    },
  };
}

/** The last token's row after `steps` of it. */
function expectedRow(technique: Technique, setting: Setting, entry: number, head: number, steps: number): Float64Array {
  const { heads, keyDim, valueDim } = setting;
  const row = (name: string, token: number, dim: number): Float64Array => {
    const at = inputAt(name);
    return Float64Array.from({ length: dim }, (_, c) => at(((entry * (SEEN + 1) + token) * heads + head) * dim + c));
  };
  const q = row('q', SEEN, keyDim);
  const weight = technique.weight(setting, head);
  const out = new Float64Array(valueDim);
  let total = 0;
  for (let i = 0; i < SEEN + steps; i++) {
    const token = Math.min(i, SEEN);
    const k = row('k', token, keyDim);
    const v = row('v', token, valueDim);
    const w = weight(
      q.reduce((sum, x, c) => sum + x * (k[c] as number), 0),
      SEEN + steps - 1 - i,
    );
    total += w;
    v.forEach((x, c) => (out[c]! += w * x));
  }
  return technique.normalised ? out.map((x) => x / total) : out;
}

/** A step of recurrent states. */
export const states: Family = ({ suite, software, sizes }) => {
  if (suite !== 'decode' || sizes) return [];
  const dtype = software ? 'f32' : 'f16';
  const of = (technique: Technique, keyDim: number, valueDim: number): Entry =>
    stateStep(technique, { batch: software ? 2 : 64, heads: software ? 2 : 16, keyDim, valueDim, dtype });
  return [of(lightning2, 64, 64), of(lightning2, 128, 128), of(based, 16, 64)];
};
