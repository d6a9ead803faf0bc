import { type Device, tensor, type Tensor } from '@heed/core';
import { lightning, lightningDecay } from '@heed/linear/lightning';
import { transnormerNormAttention } from '@heed/linear/transnormer';
import { lrpeAngles, transnormerllm } from '@heed/linear/transnormerllm';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';
import { TOLERANCE } from './attention.js';

// The techniques beside lightning2 that are a scan with one decay a head, all with states of 64 x 64.

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly dtype: 'f16' | 'f32';
}

interface Technique {
  readonly name: string;
  readonly algorithm: string;
  /** Elements of a row of q and of k. */
  readonly headDim: number;
  /** Bytes of an element of the output, where it is no element of q. */
  readonly outBytes?: number;
  /** What a call takes besides q, k and v. */
  readonly open?: (device: Device, setting: Setting) => Tensor;
  readonly call: (q: Tensor, k: Tensor, v: Tensor, setting: Setting, opened: Tensor | undefined) => Tensor;
  /** Factor of a channel of q.k, `apart` tokens later. */
  readonly weight: (setting: Setting, head: number) => (channel: number, apart: number) => number;
  /** Tokens after which weights are nothing. */
  readonly reach?: (setting: Setting, head: number) => number;
}

const VALUES = 64;
const angles = ({ heads }: Setting): Float32Array => lrpeAngles({ heads, headDim: VALUES / 2 });
const decays = ({ heads }: Setting): number[] => lightningDecay({ heads });

const techniques: readonly Technique[] = [
  {
    name: 'lightning',
    algorithm: 'one sweep without decay: q, k, v read once, out written once',
    headDim: VALUES,
    call: (q, k, v) => lightning(q, k, v),
    weight: () => () => 1,
  },
  {
    name: 'transnormer',
    algorithm: 'one sweep without decay: q, k, v read once, out written once in f32',
    headDim: VALUES,
    outBytes: 4,
    call: (q, k, v) => transnormerNormAttention(q, k, v),
    weight: () => () => 1,
  },
  {
    name: 'transnormerllm',
    algorithm: 'one sweep with LRPE, which makes 64 channels of 32 on the way: q, k, v read once, out written once',
    headDim: VALUES / 2,
    open: (device, setting) => tensor(device, angles(setting), [setting.heads, VALUES / 2]),
    call: (q, k, v, setting, theta) => transnormerllm(q, k, v, { decay: decays(setting), ...(theta && { theta }) }),
    weight(setting, head) {
      const [theta, decay] = [angles(setting), decays(setting)[head] as number];
      return (channel, apart) => Math.exp(decay * apart) * Math.cos((theta[(head * VALUES) / 2 + channel] as number) * apart);
    },
    reach: (setting, head) => 60 / -(decays(setting)[head] as number),
  },
];

function scanEntry(technique: Technique, setting: Setting): Entry {
  const { tokens, heads, dtype } = setting;
  const { name, algorithm, headDim, outBytes } = technique;
  const size = dtype === 'f16' ? 2 : 4;
  const bytes = tokens * heads * ((2 * headDim + VALUES) * size + VALUES * (outBytes ?? size));
  return {
    id: `${name}/${dtype}/d${VALUES}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, headDim, valueDim: VALUES },
    dtype,
    pass: 'forward',
    work: { algorithm, bytes, flops: 4 * tokens * heads * VALUES * VALUES },
    memory: { bytes, why: 'q, k, v and out; states of segments come on top' },
    tolerance: TOLERANCE[dtype].forward,
    series: { name: `${name}, d${VALUES}, ${dtype}, forward`, tokens },
    open: (device) => open(device, technique, setting),
  };
}

function open(device: Device, technique: Technique, setting: Setting): Opened {
  const { tokens, heads, dtype } = setting;
  const make = (name: string, dim: number): Tensor => input(device, name, [1, tokens, heads, dim], { dtype });
  const [q, k, v] = [make('q', technique.headDim), make('k', technique.headDim), make('v', VALUES)];
  const opened = technique.open?.(device, setting);
  const rows = sampleRows(tokens, heads);
  return {
    run: () => [technique.call(q, k, v, setting, opened)],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, expectedRow(technique, setting, head, token))));
    },
    dispose: () => [q, k, v, opened].forEach((t) => t?.dispose()),
  };
}

/** Sum over s <= t of the weighted product of q_t and k_s, times v_s. */
function expectedRow({ headDim, weight, reach }: Technique, setting: Setting, head: number, token: number): Float64Array {
  const [q, k, v] = ['q', 'k', 'v'].map((name) => inputAt(name)) as [(i: number) => number, (i: number) => number, (i: number) => number];
  const of = weight(setting, head);
  const own = Float64Array.from({ length: headDim }, (_, c) => q((token * setting.heads + head) * headDim + c));
  const out = new Float64Array(VALUES);
  for (let apart = 0; apart <= Math.min(token, reach?.(setting, head) ?? token); apart++) {
    const row = (token - apart) * setting.heads + head;
    const score = own.reduce((sum, x, c) => sum + x * k(row * headDim + c) * of(c, apart), 0);
    for (let c = 0; c < VALUES; c++) out[c] = (out[c] as number) + score * v(row * VALUES + c);
  }
  return out;
}

/** lightning, TransNormer's NormAttention and TransNormerLLM, forward. */
export const scans: Family = ({ suite, software, sizes }) => {
  const make = (tokens: number): Entry[] =>
    techniques.map((technique) =>
      scanEntry(technique, software ? { tokens, heads: 2, dtype: 'f32' } : { tokens, heads: 16, dtype: 'f16' }),
    );
  if (suite === 'kernels') return (sizes ?? (software ? [512] : [65536])).flatMap(make);
  if (suite === 'scaling') return (sizes ?? (software ? [256, 512] : [65536, 131072, 262144])).flatMap(make);
  return [];
};
