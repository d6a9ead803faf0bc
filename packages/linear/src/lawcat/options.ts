import { HeedError, type Tensor } from '@heed/core';

/** What the gate and the quotient are made with. */
export interface LawcatForm {
  /** Factor on numerator and normaliser: only `eps` notices. Default 1 / sqrt(keyDim). */
  scale?: number;
  /** Gates are log-sigmoid(logit) / gateNormalizer. Default 16. */
  gateNormalizer?: number;
  /** Added to the normaliser, behind the scale. Default 1e-10. */
  eps?: number;
  /** Tokens a segment of the scan. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
}

/** Options of `lawcat`. */
export interface LawcatOptions extends LawcatForm {
  /** Gate logits, [batch, tokens, heads, keyDim]: the state forgets by exp(log-sigmoid(gate) / gateNormalizer) a channel. */
  gate: Tensor;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim + 1]; the last column is the normaliser. Default zeros. */
  initialState?: Tensor;
  /** Valid tokens a batch entry, i32 [batch]. Default: all. */
  lengths?: Tensor;
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT: what is wrong with gate, state and numbers; the scan checks q, k and v */
export function checkLawcat(who: string, q: Tensor, v: Tensor, options: LawcatOptions): void {
  const { gate, initialState, gateNormalizer = 16, eps = 1e-10 } = options;
  for (const [name, x] of [
    ['q', q],
    ['v', v],
  ] as const) {
    if (x.rank !== 4)
      throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be [batch, tokens, heads, dimension]`);
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
  }
  if (gate.shape.join() !== q.shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: gate is ${gate.describe()}; it must be [${q.shape.join(', ')}], one logit a feature of the keys`,
    );
  if (!(gateNormalizer > 0) || !(eps >= 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: gateNormalizer ${gateNormalizer} and eps ${eps}; they are above 0, and at least 0`);
  const shape = [q.dim(0), q.dim(2), q.dim(3), v.dim(3) + 1];
  if (initialState && initialState.shape.join() !== shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: initialState is ${initialState.describe()}; it must be [${shape.join(', ')}]: batch, heads, key features, values and normaliser`,
    );
}
