// Makes the golden cases with f16 operands that exercise matrix kernels, from the float64 references: head dimensions 40, 64, 80
// and 128 (two no multiple of 32), tokens 1, 63 and 1023 (no multiple of any tile). Inputs are f16 numbers, so that the reference
// and a device get the same ones. The longest cases have no gradients, which would be megabytes.
import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { RandomStream } from '@heed/core';
import { encodeFloats, fileSink, writeSafetensors } from '@heed/core/io';
import { elements, f64, toFloat32 } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';
import { referenceAttention, referenceAttentionGradients } from '../../packages/core/src/attention/reference.js';
import { halfToFloat32, float32ToHalf } from '../../packages/core/src/tensor/half.js';
import { referenceAlibiSlopes, referenceLightning2, referenceLightning2Gradients } from '../../packages/linear/src/lightning2/reference.js';

const headDims = [40, 64, 80, 128];
const lengths = [1, 63, 1023];
const withGradients = (tokens: number): boolean => tokens < 1000;

interface Case {
  op: string;
  params: Record<string, unknown>;
  inputs: Record<string, F64Array>;
  outputs: Record<string, F64Array>;
  grads: Record<string, F64Array>;
  tolerance: { atol: number; rtol: number };
}

/** Normal numbers times `deviation`, rounded to f16. */
function halves(random: RandomStream, shape: readonly number[], deviation = 1): F64Array {
  return f64(
    shape,
    random.normal(elements(shape)).map((x) => halfToFloat32(float32ToHalf(x * deviation))),
  );
}

async function write(path: string, made: Case, f32: readonly string[]): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const sink = await fileSink(path);
  const tensors = Object.entries({ ...made.inputs, ...made.outputs, ...made.grads }).map(([name, array]) => {
    const dtype = f32.includes(name) ? ('F32' as const) : ('F16' as const);
    return { name, dtype, shape: array.shape, bytes: encodeFloats(toFloat32(array), dtype) };
  });
  await writeSafetensors(sink, tensors, {
    op: made.op,
    params: JSON.stringify(made.params),
    inputs: JSON.stringify(Object.keys(made.inputs)),
    outputs: JSON.stringify(Object.keys(made.outputs)),
    grads: JSON.stringify(Object.keys(made.grads)),
    tolerance: JSON.stringify(made.tolerance),
    source: 'the float64 reference of this repository on f16 inputs (tooling/golden/matrix-cases.ts)',
  });
  await sink.close();
}

/** Causal attention, two query heads over one KV head. */
function attentionCase(tokens: number, headDim: number): Case {
  const random = new RandomStream(tokens * 1000 + headDim, 'matrix-cases/engine');
  const heads = withGradients(tokens) ? 2 : 1;
  const [query, key, value] = [
    halves(random, [1, tokens, heads, headDim]),
    halves(random, [1, tokens, 1, headDim]),
    halves(random, [1, tokens, 1, headDim]),
  ];
  const options = { mask: (_b: number, _h: number, q: number, kv: number): boolean => kv <= q };
  const { out, lse } = referenceAttention(query, key, value, options);
  const grads: Record<string, F64Array> = {};
  if (withGradients(tokens)) {
    grads['cotangent_out'] = halves(random, [1, tokens, heads, headDim], 0.5);
    grads['cotangent_lse'] = halves(random, [1, tokens, heads], 0.5);
    const found = referenceAttentionGradients(query, key, value, { out: grads['cotangent_out'], lse: grads['cotangent_lse'] }, options);
    Object.assign(grads, { grad_query: found.q, grad_key: found.k, grad_value: found.v });
  }
  const tolerance = { atol: 4e-3, rtol: 1e-2 };
  return {
    op: 'sparse-local/engine',
    params: { mask: 'causal', scale: null },
    inputs: { query, key, value },
    outputs: { out, lse },
    grads,
    tolerance,
  };
}

/** Two heads with a fast and a slow decay; the middle length carries a state in and out. */
function lightning2Case(tokens: number, headDim: number): Case {
  const random = new RandomStream(tokens * 1000 + headDim, 'matrix-cases/lightning2');
  const heads = withGradients(tokens) ? 2 : 1;
  // With q and k of this size their product is about 1 whatever the head dimension.
  const small = headDim ** -0.25;
  const shape = [1, tokens, heads, headDim];
  const [q, k, v] = [halves(random, shape, small), halves(random, shape, small), halves(random, shape)];
  const slopes = f64(
    [heads],
    referenceAlibiSlopes(8).filter((_, h) => h === 1 || (h === 5 && heads === 2)),
  );
  const initialState = tokens === 63 ? halves(random, [1, heads, headDim, headDim]) : undefined;
  const { out, finalState } = referenceLightning2(q, k, v, slopes.values, { initialState });
  const grads: Record<string, F64Array> = {};
  if (withGradients(tokens)) {
    const dOut = (grads['cotangent_o'] = halves(random, shape, 0.5));
    if (initialState) grads['cotangent_finalState'] = halves(random, initialState.shape, 0.5);
    const cotangents = { out: dOut, finalState: grads['cotangent_finalState'] };
    const found = referenceLightning2Gradients(q, k, v, slopes.values, cotangents, { initialState });
    Object.assign(grads, {
      grad_q: found.q,
      grad_k: found.k,
      grad_v: found.v,
      ...(initialState && { grad_initialState: found.initialState }),
    });
  }
  return {
    op: 'linear/lightning2',
    params: { causal: true, scale: 1, decay: true },
    inputs: { q, k, v, slopes, ...(initialState && { initialState }) },
    outputs: { o: out, ...(initialState && { finalState }) },
    grads,
    tolerance: { atol: 2e-2, rtol: 1e-2 },
  };
}

/** Writes all cases beneath the packages that they test. */
export async function main(root: string): Promise<void> {
  for (const tokens of lengths) {
    for (const headDim of headDims) {
      const name = `f16-t${tokens}-d${headDim}.safetensors`;
      const engine = join(root, 'packages/sparse-local/test/matrix-cases', `engine--${name}`);
      await write(engine, attentionCase(tokens, headDim), ['lse', 'cotangent_lse']);
      const linear = join(root, 'packages/linear/test/matrix-cases', `lightning2--${name}`);
      const states = ['initialState', 'finalState', 'cotangent_finalState', 'grad_initialState'];
      await write(linear, lightning2Case(tokens, headDim), ['slopes', ...states]);
      console.log(name);
    }
  }
}
