import { f64, f64Like } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference; those of `nprf`, all given. */
export interface NprfReferenceOptions {
  causal: boolean;
  featureMap: 'prf' | 'trf';
  normalize: boolean;
  normEps: number;
  denominatorEps: number;
  /** Width of images; tokens are then height x width, the table [heads, 2 height - 1, 2 width - 1]. */
  imageWidth?: number;
  lengths?: readonly number[];
  /** The table has the offsets -clip .. clip, its ends those beyond. */
  clip?: number | undefined;
}

export interface NprfReferenceGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  rpeBias: F64Array;
}

const at = (x: F64Array, i: number): number => x.values[i] as number;

interface Row {
  /** phi(x). */
  phi: Float64Array;
  /** Gradient by x from that by phi. */
  back: (dPhi: Float64Array) => Float64Array;
}

/** Luo et al. 2021, section 3: features of one row of x [batch, tokens, heads, dim]. */
function row(x: F64Array, w: F64Array, options: NprfReferenceOptions, first: number, head: number): Row {
  const [m, dim] = [w.shape[1] as number, w.shape[2] as number];
  const own = x.values.subarray(first, first + dim);
  const length = Math.sqrt(own.reduce((sum, value) => sum + value * value, 0));
  const divisor = options.normalize ? Math.max(length, options.normEps) : 1;
  const unit = own.map((value) => value / divisor);
  const squares = unit.reduce((sum, value) => sum + value * value, 0);
  const weight = (r: number, c: number): number => at(w, (head * m + r) * dim + c);
  const projection = Float64Array.from({ length: m }, (_, r) => unit.reduce((sum, value, c) => sum + weight(r, c) * value, 0));
  const share = 1 / Math.sqrt(m);
  const prf = options.featureMap === 'prf';
  const factor = share * Math.exp(prf ? -squares / 2 : squares / 2);
  const phi = prf
    ? projection.map((p) => factor * Math.exp(p))
    : Float64Array.from(
        { length: 2 * m },
        (_, r) => factor * (r < m ? Math.sin(projection[r] as number) : Math.cos(projection[r - m] as number)),
      );
  const back = (dPhi: Float64Array): Float64Array => {
    // by the projection, and through the factor by the squares
    const dProjection = new Float64Array(m);
    let dSquares = 0;
    dPhi.forEach((g, r) => {
      const value = phi[r] as number;
      const p = projection[r % m] as number;
      dProjection[r % m]! += g * (prf ? value : factor * (r < m ? Math.cos(p) : -Math.sin(p)));
      dSquares += g * value * (prf ? -0.5 : 0.5);
    });
    const dUnit = unit.map((value, c) => 2 * dSquares * value + dProjection.reduce((sum, g, r) => sum + g * weight(r, c), 0));
    if (!options.normalize) return dUnit;
    const along = length > options.normEps ? unit.reduce((sum, value, c) => sum + value * (dUnit[c] as number), 0) : 0;
    return dUnit.map((g, c) => (g - along * (unit[c] as number)) / divisor);
  };
  return { phi, back };
}

/** The pairs of a query, with their entry of the table. */
function pairs(q: F64Array, k: F64Array, options: NprfReferenceOptions, b: number, i: number): { j: number; entry: number }[] {
  const [queries, keys] = [q.shape[1] as number, k.shape[1] as number];
  const list: { j: number; entry: number }[] = [];
  const width = options.imageWidth;
  for (let j = 0; j < Math.min(keys, options.lengths?.[b] ?? keys); j++) {
    if (options.causal && j > i + keys - queries) continue;
    if (options.clip !== undefined) list.push({ j, entry: Math.max(-options.clip, Math.min(options.clip, j - i)) + options.clip });
    else if (width === undefined) list.push({ j, entry: j - i + queries - 1 });
    else {
      const height = queries / width;
      const [dy, dx] = [Math.floor(j / width) - Math.floor(i / width), (j % width) - (i % width)];
      list.push({ j, entry: (dy + height - 1) * (2 * width - 1) + dx + width - 1 });
    }
  }
  return list;
}

/** NPRF with RPE in float64, pair by pair, and, with `dOut`, the gradients. Operands [batch, tokens, heads, ..], rpeBias [heads, ..]. */
export function referenceNprf(
  given: { q: F64Array; k: F64Array; v: F64Array; features: F64Array; rpeBias: F64Array },
  options: NprfReferenceOptions,
  dOut?: F64Array,
): { out: F64Array; grads: NprfReferenceGradients } {
  const { q, k, v, features, rpeBias } = given;
  const [batch, queries, heads, dim] = q.shape as [number, number, number, number];
  const [keys, valueDim] = [k.shape[1] as number, v.shape[3] as number];
  const table = rpeBias.values.length / heads;
  const out = f64([batch, queries, heads, valueDim]);
  const grads = { q: f64Like(q), k: f64Like(k), v: f64Like(v), rpeBias: f64Like(rpeBias) };
  const add = (to: F64Array, first: number, values: Float64Array): void => values.forEach((x, c) => (to.values[first + c]! += x));
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++) {
      const keyRows = Array.from({ length: keys }, (_, j) => row(k, features, options, ((b * keys + j) * heads + h) * dim, h));
      const dKeys = keyRows.map(({ phi }) => new Float64Array(phi.length));
      for (let i = 0; i < queries; i++) {
        const own = row(q, features, options, ((b * queries + i) * heads + h) * dim, h);
        const list = pairs(q, k, options, b, i).map(({ j, entry }) => {
          const phi = (keyRows[j] as Row).phi;
          const kernel = own.phi.reduce((sum, x, r) => sum + x * (phi[r] as number), 0);
          return { j, entry, kernel, bias: Math.exp(at(rpeBias, h * table + entry)) };
        });
        const denominator = list.reduce((sum, p) => sum + p.kernel * p.bias, 0) + options.denominatorEps;
        const place = ((b * queries + i) * heads + h) * valueDim;
        if (denominator === 0) continue;
        for (const { j, kernel, bias } of list)
          for (let c = 0; c < valueDim; c++)
            out.values[place + c]! += (kernel * bias * at(v, ((b * keys + j) * heads + h) * valueDim + c)) / denominator;
        if (!dOut) continue;
        const dPhi = new Float64Array(own.phi.length);
        for (const { j, entry, kernel, bias } of list) {
          const value = ((b * keys + j) * heads + h) * valueDim;
          let dWeight = 0;
          for (let c = 0; c < valueDim; c++) {
            const g = at(dOut, place + c) / denominator;
            dWeight += g * (at(v, value + c) - at(out, place + c));
            grads.v.values[value + c]! += g * kernel * bias;
          }
          grads.rpeBias.values[h * table + entry]! += dWeight * kernel * bias;
          const phi = (keyRows[j] as Row).phi;
          own.phi.forEach((x, r) => {
            dPhi[r]! += dWeight * bias * (phi[r] as number);
            (dKeys[j] as Float64Array)[r]! += dWeight * bias * x;
          });
        }
        add(grads.q, ((b * queries + i) * heads + h) * dim, own.back(dPhi));
      }
      keyRows.forEach(({ back }, j) => add(grads.k, ((b * keys + j) * heads + h) * dim, back(dKeys[j] as Float64Array)));
    }
  return { out, grads };
}
