import { f64, f64Like } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference; slopes are >= 0 and decay a state by exp(-slope) a token (`decay` of the public function is -slope). */
export interface Lightning2ReferenceOptions {
  /** State before the first token, [batch, heads, keyDim, valueDim]; default zeros. */
  initialState?: F64Array | undefined;
  /** Factor on q; default 1. */
  scale?: number | undefined;
  /** Valid tokens of each batch entry; later ones neither decay the state nor have an output. */
  lengths?: ArrayLike<number> | undefined;
}

export interface Lightning2ReferenceResult {
  /** [batch, tokens, heads, valueDim]. */
  out: F64Array;
  /** [batch, heads, keyDim, valueDim]. */
  finalState: F64Array;
}

export interface Lightning2ReferenceGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  initialState: F64Array;
}

/**
 * Causal linear attention with one exponential decay a head, token by token in float64 (Qin et al. 2024, arXiv 2401.04658,
 * section 3): kv_t = lambda kv_(t-1) + k_t v_t^T, o_t = q_t kv_t. q and k are [batch, tokens, heads, keyDim],
 * v [batch, tokens, heads, valueDim], slopes [heads].
 */
export function referenceLightning2(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  slopes: ArrayLike<number>,
  options: Lightning2ReferenceOptions = {},
): Lightning2ReferenceResult {
  const { batch, tokens, heads, keyDim, valueDim } = sizes(q, v);
  const scale = options.scale ?? 1;
  const out = f64([batch, tokens, heads, valueDim]);
  const finalState = f64([batch, heads, keyDim, valueDim], options.initialState?.values);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const lambda = Math.exp(-at(slopes, h));
      const stateSize = keyDim * valueDim;
      // A view: what is written here is the final state.
      const state = finalState.values.subarray((b * heads + h) * stateSize, (b * heads + h + 1) * stateSize);
      for (let t = 0; t < (options.lengths?.[b] ?? tokens); t++) {
        const row = (b * tokens + t) * heads + h;
        for (let i = 0; i < keyDim; i++) {
          for (let j = 0; j < valueDim; j++) {
            state[i * valueDim + j] =
              lambda * at(state, i * valueDim + j) + at(k.values, row * keyDim + i) * at(v.values, row * valueDim + j);
          }
        }
        for (let j = 0; j < valueDim; j++) {
          let sum = 0;
          for (let i = 0; i < keyDim; i++) sum += at(q.values, row * keyDim + i) * at(state, i * valueDim + j);
          out.values[row * valueDim + j] = scale * sum;
        }
      }
    }
  }
  return { out, finalState };
}

/**
 * The gradients of {@link referenceLightning2} from cotangents of out and of the final state (either may be left out).
 * With G_t the gradient of kv_t: G_t = lambda G_(t+1) + q_t dO_t^T from G_T = dFinal + q_T dO_T^T; dq_t = kv_t dO_t,
 * dk_t = G_t v_t, dv_t = G_t^T k_t, dInitial = lambda G_1 (section 3.3 in its token-by-token form). Slopes are constants.
 */
export function referenceLightning2Gradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  slopes: ArrayLike<number>,
  cotangents: { out?: F64Array | undefined; finalState?: F64Array | undefined },
  options: Lightning2ReferenceOptions = {},
): Lightning2ReferenceGradients {
  const { batch, tokens, heads, keyDim, valueDim } = sizes(q, v);
  const scale = options.scale ?? 1;
  const dq = f64Like(q);
  const dk = f64Like(k);
  const dv = f64Like(v);
  const dInitial = f64([batch, heads, keyDim, valueDim], cotangents.finalState?.values);
  const stateSize = keyDim * valueDim;
  for (let b = 0; b < batch; b++) {
    const length = options.lengths?.[b] ?? tokens;
    for (let h = 0; h < heads; h++) {
      const lambda = Math.exp(-at(slopes, h));
      const place = (b * heads + h) * stateSize;
      const dOut = (row: number, j: number): number => scale * (cotangents.out?.values[row * valueDim + j] ?? 0);
      const state = new Float64Array(stateSize);
      if (options.initialState) state.set(options.initialState.values.subarray(place, place + stateSize));
      for (let t = 0; t < length; t++) {
        const row = (b * tokens + t) * heads + h;
        for (let i = 0; i < keyDim; i++) {
          let sum = 0;
          for (let j = 0; j < valueDim; j++) {
            const x = lambda * at(state, i * valueDim + j) + at(k.values, row * keyDim + i) * at(v.values, row * valueDim + j);
            state[i * valueDim + j] = x;
            sum += x * dOut(row, j);
          }
          dq.values[row * keyDim + i] = sum;
        }
      }
      const dState = dInitial.values.subarray(place, place + stateSize);
      for (let t = length - 1; t >= 0; t--) {
        const row = (b * tokens + t) * heads + h;
        for (let i = 0; i < keyDim; i++) {
          for (let j = 0; j < valueDim; j++) {
            const x = at(dState, i * valueDim + j) + at(q.values, row * keyDim + i) * dOut(row, j);
            dk.values[row * keyDim + i] = at(dk.values, row * keyDim + i) + x * at(v.values, row * valueDim + j);
            dv.values[row * valueDim + j] = at(dv.values, row * valueDim + j) + x * at(k.values, row * keyDim + i);
            // Through kv_t = lambda kv_(t-1) + ...: what reaches the token before.
            dState[i * valueDim + j] = lambda * x;
          }
        }
      }
    }
  }
  return { q: dq, k: dk, v: dv, initialState: dInitial };
}

/** The slopes of ALiBi, [heads]: 2^(-8(h+1)/H) for H a power of two; else those of the power of two P below H, then every second one for 2P heads. */
export function referenceAlibiSlopes(heads: number): Float64Array {
  const power = 2 ** Math.floor(Math.log2(heads));
  const slope = (h: number, of: number): number => 2 ** ((-8 * (h + 1)) / of);
  return Float64Array.from({ length: heads }, (_, h) => (h < power ? slope(h, power) : slope(2 * (h - power), 2 * power)));
}

/** TransNormerLLM's factor on the slopes of a layer: low layers forget fast, the last hardly at all. One layer alone gets 1 + 1e-5. */
export function referenceLayerFactor(layer: number, layers: number): number {
  return layers === 1 ? 1 + 1e-5 : 1 - layer / (layers - 1) + 1e-5;
}

/** The paper's own slopes (section 3, as flash-linear-attention has them): (8h/H)(1 - l/L). */
export function referencePaperSlopes(heads: number, layer: number, layers: number): Float64Array {
  return Float64Array.from({ length: heads }, (_, h) => ((8 * h) / heads) * (1 - layer / layers));
}

function sizes(q: F64Array, v: F64Array): { batch: number; tokens: number; heads: number; keyDim: number; valueDim: number } {
  const [batch, tokens, heads, keyDim] = q.shape as [number, number, number, number];
  return { batch, tokens, heads, keyDim, valueDim: v.shape[3] as number };
}

function at(values: ArrayLike<number>, position: number): number {
  return values[position] as number;
}
