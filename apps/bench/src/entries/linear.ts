import type { Device, Tensor } from '@heed/core';
import { based } from '@heed/linear/based';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';
import { TOLERANCE } from './attention.js';

// Linear attention beyond lightning2: here belong the techniques whose rows are sums over all keys with weights of their own.

const FEATURES = 16;
const VALUES = 64;
const q = inputAt('q');
const k = inputAt('k');
const v = inputAt('v');

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly dtype: 'f16' | 'f32';
}

/** A row of based: weights 1 + s + s^2 / 2 with s = q.k / sqrt(16), over their sum. */
function basedRow(heads: number, head: number, token: number): Float64Array {
  const own = Float64Array.from({ length: FEATURES }, (_, c) => q((token * heads + head) * FEATURES + c));
  const out = new Float64Array(VALUES);
  let total = 0;
  for (let key = 0; key <= token; key++) {
    let s = 0;
    for (let c = 0; c < FEATURES; c++) s += (own[c] as number) * k((key * heads + head) * FEATURES + c);
    s /= Math.sqrt(FEATURES);
    const weight = 1 + s + (s * s) / 2;
    total += weight;
    for (let c = 0; c < VALUES; c++) out[c] = (out[c] as number) + weight * v((key * heads + head) * VALUES + c);
  }
  return out.map((value) => value / total);
}

function basedEntry(setting: Setting): Entry {
  const { tokens, heads, dtype } = setting;
  const size = dtype === 'f16' ? 2 : 4;
  const bytes = tokens * heads * 2 * (FEATURES + VALUES) * size;
  const features = 1 + FEATURES + (FEATURES * (FEATURES + 1)) / 2;
  return {
    id: `based/${dtype}/f${FEATURES}/d${VALUES}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, featureDim: FEATURES, valueDim: VALUES },
    dtype,
    pass: 'forward',
    work: {
      algorithm: 'one sweep: q, k, v read once, out written once; sums stay on the chip',
      bytes,
      flops: 4 * tokens * heads * features * VALUES,
    },
    memory: { bytes: bytes + tokens * heads * 4, why: 'q, k, v, out and the sum of weights a row; sums of segments come on top' },
    tolerance: TOLERANCE[dtype].forward,
    series: { name: `based, f${FEATURES}, d${VALUES}, ${dtype}, forward`, tokens },
    open: (device) => open(device, setting),
  };
}

function open(device: Device, { tokens, heads, dtype }: Setting): Opened {
  const queries = input(device, 'q', [1, tokens, heads, FEATURES], { dtype });
  const keys = input(device, 'k', [1, tokens, heads, FEATURES], { dtype });
  const values = input(device, 'v', [1, tokens, heads, VALUES], { dtype });
  const rows = sampleRows(tokens, heads);
  return {
    run: () => [based(queries, keys, values)],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, basedRow(heads, head, token))));
    },
    dispose: () => [queries, keys, values].forEach((t) => t.dispose()),
  };
}

/** based with 16 features of its Taylor map. */
export const linear: Family = ({ suite, software, sizes }) => {
  const make = (tokens: number): Entry => basedEntry(software ? { tokens, heads: 2, dtype: 'f32' } : { tokens, heads: 16, dtype: 'f16' });
  if (suite === 'kernels') return (sizes ?? (software ? [512] : [16384, 65536])).map(make);
  if (suite === 'scaling') return (sizes ?? Array.from({ length: software ? 3 : 9 }, (_, i) => 2 ** (i + (software ? 8 : 10)))).map(make);
  return [];
};
