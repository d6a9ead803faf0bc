import type { Device, Tensor } from '@heed/core';
import { nalaformer } from '@heed/linear/nalaformer';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { readRows, rowError, type Row, sampleRows, worst } from '../samples.js';
import { TOLERANCE } from './attention.js';

const DIM = 64;
const EPS = 1e-6;
const q = inputAt('q');
const k = inputAt('k');
const v = inputAt('v');

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly dtype: 'f16' | 'f32';
  readonly causal: boolean;
}

/** A row of the released sign split: weights sum |q_i / n|^p |k_i|^3 over coordinates of one sign, over their mean. */
function nalaformerRow({ tokens, heads, causal }: Setting, { token, head }: Row): Float64Array {
  const own = Float64Array.from({ length: DIM }, (_, c) => q((token * heads + head) * DIM + c));
  const n = Math.max(Math.hypot(...own), 1e-12);
  const p = 3 * (0.5 + Math.tanh(n));
  const features = own.map((x) => Math.abs(x / n) ** p);
  const seen = causal ? token + 1 : tokens;
  const out = new Float64Array(DIM);
  let total = 0;
  for (let key = 0; key < seen; key++) {
    const at = (key * heads + head) * DIM;
    let weight = 0;
    for (let c = 0; c < DIM; c++) {
      const x = k(at + c);
      if (x * (own[c] as number) > 0) weight += (features[c] as number) * Math.abs(x) ** 3;
    }
    total += weight;
    for (let c = 0; c < DIM; c++) out[c] = (out[c] as number) + weight * v(at + c);
  }
  return out.map((value) => value / (total + EPS * seen));
}

function entry(setting: Setting): Entry {
  const { tokens, heads, dtype, causal } = setting;
  const bytes = 4 * tokens * heads * DIM * (dtype === 'f16' ? 2 : 4);
  return {
    id: `nalaformer/${causal ? 'causal/' : ''}${dtype}/d${DIM}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, headDim: DIM },
    dtype,
    pass: 'forward',
    work: {
      algorithm: 'two passes: k, v read once, q read and out written once',
      bytes,
      flops: 8 * tokens * heads * DIM * DIM,
      units: 'f32',
    },
    memory: { bytes: bytes + 2 * tokens * heads * 2 * DIM * 4, why: 'q, k, v, out and the features of q and k in f32' },
    tolerance: TOLERANCE[dtype].forward,
    series: { name: `nalaformer${causal ? ', causal' : ''}, d${DIM}, ${dtype}, forward`, tokens },
    open: (device) => open(device, setting),
  };
}

function open(device: Device, setting: Setting): Opened {
  const { tokens, heads, dtype, causal } = setting;
  const [queries, keys, values] = ['q', 'k', 'v'].map((name) => input(device, name, [1, tokens, heads, DIM], { dtype })) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const rows = sampleRows(tokens, heads);
  return {
    run: () => [nalaformer(queries, keys, values, { causal })],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map((row, i) => rowError(got[i] as Float64Array, nalaformerRow(setting, row))));
    },
    dispose: () => [queries, keys, values].forEach((t) => t.dispose()),
  };
}

/** nalaformer, as for pictures and causal. */
export const nalaformerFamily: Family = ({ suite, software, sizes }) => {
  const heads = software ? 2 : 16;
  const dtype = software ? 'f32' : 'f16';
  if (suite === 'kernels')
    return (sizes ?? (software ? [512] : [16384, 65536])).flatMap((tokens) =>
      [false, true].map((causal) => entry({ tokens, heads, dtype, causal })),
    );
  if (suite === 'scaling')
    return (sizes ?? Array.from({ length: software ? 3 : 4 }, (_, i) => 2 ** (2 * i + (software ? 5 : 10)))).map((tokens) =>
      entry({ tokens, heads, dtype, causal: false }),
    );
  return [];
};
