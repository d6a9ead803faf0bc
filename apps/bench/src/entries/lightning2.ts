import type { Device, Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { decayFromSlopes, lightning2, lightning2Slopes } from '@heed/linear/lightning2';
import type { Entry, Family, Opened } from '../entry.js';
import { input } from '../inputs.js';
import { decayDk, decayDq, decayDv, type DecayProblem, decayRow } from '../reference.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';
import { TOLERANCE } from './attention.js';

const HEADS = 16;

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: 'f16' | 'f32';
  readonly pass: 'forward' | 'backward';
}

/** lightning2 with the slopes of its paper's code, scale 1. */
function lightning(setting: Setting): Entry {
  const { tokens, heads, headDim, dtype, pass } = setting;
  const row = tokens * heads * headDim * (dtype === 'f16' ? 2 : 4);
  const forward = pass === 'forward';
  // state update and read-out of the recurrent form: two products of headDim x headDim a token and head
  const products = 4 * tokens * heads * headDim * headDim;
  return {
    id: `lightning2/${dtype}/d${headDim}/${tokens}/${pass}`,
    shape: { batch: 1, tokens, heads, headDim },
    dtype,
    pass,
    work: forward
      ? { algorithm: 'one sweep: q, k, v read once, out written once; states stay on the chip', bytes: 4 * row, flops: products }
      : { algorithm: 'two sweeps: k, v, dOut read twice, q once, dq, dk, dv written once', bytes: 10 * row, flops: 2.5 * products },
    memory: forward
      ? { bytes: 4 * row, why: 'q, k, v and out; states of segments come on top' }
      : { bytes: 8 * row, why: 'q, k, v, out, dOut, dq, dk and dv; states of segments come on top' },
    tolerance: TOLERANCE[dtype][pass],
    series: { name: `lightning2, d${headDim}, ${dtype}, ${pass}`, tokens },
    open: (device) => open(device, setting),
  };
}

function open(device: Device, { tokens, heads, headDim, dtype, pass }: Setting): Opened {
  const decay = decayFromSlopes(lightning2Slopes({ heads }));
  const problem: DecayProblem = { tokens, heads, headDim, decay };
  const shape = [1, tokens, heads, headDim];
  const [q, k, v] = ['q', 'k', 'v'].map((name) => input(device, name, shape, { dtype })) as [Tensor, Tensor, Tensor];
  const rows = sampleRows(tokens, heads);
  const call = (): Tensor => lightning2(q, k, v, { decay });
  const errors = (got: readonly Float64Array[], row: (p: DecayProblem, head: number, token: number) => Float64Array): number[] =>
    rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, row(problem, head, token)));
  if (pass === 'forward') {
    return {
      run: () => [call()],
      async sample([out]) {
        const got = await readRows(out as Tensor, rows);
        return () => worst(errors(got, decayRow));
      },
      dispose: () => [q, k, v].forEach((t) => t.dispose()),
    };
  }
  const dOut = input(device, 'dOut', shape, { dtype });
  return {
    run(restart) {
      const { outputs, grads } = vjp(
        () => {
          const out = call();
          restart();
          return out;
        },
        [q, k, v],
        [dOut],
      );
      return [...grads, ...outputs];
    },
    async sample([dq, dk, dv]) {
      const got = [await readRows(dq as Tensor, rows), await readRows(dk as Tensor, rows), await readRows(dv as Tensor, rows)] as const;
      return () => worst([...errors(got[0], decayDq), ...errors(got[1], decayDk), ...errors(got[2], decayDv)]);
    },
    dispose: () => [q, k, v, dOut].forEach((t) => t.dispose()),
  };
}

/** lightning2, forward and backward. */
export const lightning2Family: Family = ({ suite, software, sizes }) => {
  const make = (tokens: number, headDim: number, pass: 'forward' | 'backward'): Entry =>
    lightning(software ? { tokens, heads: 2, headDim, dtype: 'f32', pass } : { tokens, heads: HEADS, headDim, dtype: 'f16', pass });
  if (suite === 'quick') {
    const lengths = sizes ?? (software ? [512, 1024] : [65536]);
    return lengths.flatMap((t) => [make(t, 64, 'forward'), make(t, 64, 'backward')]);
  }
  if (suite === 'kernels') {
    const lengths = sizes ?? (software ? [512, 1024] : [4096, 16384, 65536]);
    const wide = lengths.filter((t) => t === 65536 || sizes);
    return [
      ...lengths.map((t) => make(t, 64, 'forward')),
      ...lengths.map((t) => make(t, 64, 'backward')),
      ...wide.map((t) => make(t, 128, 'forward')),
      ...wide.map((t) => make(t, 128, 'backward')),
    ];
  }
  if (suite === 'scaling')
    return (sizes ?? Array.from({ length: software ? 4 : 11 }, (_, i) => 2 ** (i + (software ? 8 : 10)))).map((t) =>
      make(t, 64, 'forward'),
    );
  return [];
};
