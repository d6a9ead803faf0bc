import type { ExprType, Op } from './node.js';

// What every operation means on the host: float64 for f32, 32-bit wrap-around for integers, 0 and 1 for bool.

const view = new DataView(new ArrayBuffer(4));
const TWO_OVER_SQRT_PI = 2 / Math.sqrt(Math.PI);

/** Error function in float64: the all-positive series exp(-x^2) sum 2^n x^(2n+1) / (2n+1)!!; beyond 6 it is 1 to the last bit. */
export function erf(x: number): number {
  if (Number.isNaN(x)) return x;
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; n < 200 && Math.abs(term) > Math.abs(sum) * 1e-17; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return TWO_OVER_SQRT_PI * Math.exp(-x * x) * sum;
}

/** To the nearest integer, ties to even, as WGSL rounds. */
export function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

function sigmoid(x: number): number {
  if (x >= 0) return 1 / (1 + Math.exp(-x));
  const e = Math.exp(x);
  return e / (1 + e);
}

function popcount(x: number): number {
  let v = x - ((x >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Conversion between types, WGSL rules: float to integer truncates and saturates, integers keep their bits. */
export function convert(value: number, from: ExprType, to: ExprType): number {
  if (to === 'f32' || from === to) return value;
  if (to === 'bool') return value === 0 ? 0 : 1;
  if (from === 'f32') {
    const [low, high] = to === 'i32' ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
    return Math.min(high, Math.max(low, Math.trunc(value))) || 0;
  }
  return to === 'i32' ? value | 0 : value >>> 0;
}

/** The same bits as another type; floats are rounded to f32 first. */
export function reinterpret(value: number, from: ExprType, to: ExprType): number {
  if (from === 'f32') view.setFloat32(0, value);
  else view.setUint32(0, value >>> 0);
  return to === 'f32' ? view.getFloat32(0) : to === 'i32' ? view.getInt32(0) : view.getUint32(0);
}

type Apply = (a: number, b: number, c: number) => number;
type Table = Partial<Record<Op, Apply>>;

const compares: Table = {
  eq: (a, b) => (a === b ? 1 : 0),
  ne: (a, b) => (a !== b ? 1 : 0),
  lt: (a, b) => (a < b ? 1 : 0),
  le: (a, b) => (a <= b ? 1 : 0),
  gt: (a, b) => (a > b ? 1 : 0),
  ge: (a, b) => (a >= b ? 1 : 0),
  select: (c, a, b) => (c !== 0 ? a : b),
  min: (a, b) => Math.min(a, b),
  max: (a, b) => Math.max(a, b),
  clamp: (x, low, high) => Math.min(Math.max(x, low), high),
};

const tables: Record<ExprType, Table> = {
  f32: {
    ...compares,
    add: (a, b) => a + b,
    sub: (a, b) => a - b,
    mul: (a, b) => a * b,
    div: (a, b) => a / b,
    mod: (a, b) => a - b * Math.floor(a / b),
    pow: (a, b) => (a > 0 ? a ** b : b === 0 ? 1 : 0),
    neg: (a) => -a,
    abs: Math.abs,
    sign: (a) => Math.sign(a) || 0,
    floor: Math.floor,
    ceil: Math.ceil,
    round: roundHalfEven,
    fract: (a) => a - Math.floor(a),
    sqrt: Math.sqrt,
    inverseSqrt: (a) => 1 / Math.sqrt(a),
    exp: Math.exp,
    exp2: (a) => 2 ** a,
    log: Math.log,
    log2: Math.log2,
    sin: Math.sin,
    cos: Math.cos,
    tanh: Math.tanh,
    erf,
    sigmoid,
    softplus: (a) => Math.max(a, 0) + Math.log1p(Math.exp(-Math.abs(a))),
  },
  i32: {
    ...compares,
    add: (a, b) => (a + b) | 0,
    sub: (a, b) => (a - b) | 0,
    mul: Math.imul,
    div: (a, b) => (b === 0 ? a : (a / b) | 0),
    mod: (a, b) => (b === 0 ? 0 : ((a % b) + Math.abs(b)) % b || 0),
    neg: (a) => -a | 0,
    abs: (a) => Math.abs(a) | 0,
    sign: (a) => Math.sign(a) || 0,
    and: (a, b) => a & b,
    or: (a, b) => a | b,
    xor: (a, b) => a ^ b,
    not: (a) => ~a,
    shl: (a, b) => a << b,
    shr: (a, b) => a >> b,
    popcount,
  },
  u32: {
    ...compares,
    add: (a, b) => (a + b) >>> 0,
    sub: (a, b) => (a - b) >>> 0,
    mul: (a, b) => Math.imul(a, b) >>> 0,
    div: (a, b) => (b === 0 ? a : Math.floor(a / b)),
    mod: (a, b) => (b === 0 ? 0 : a % b),
    abs: (a) => a,
    and: (a, b) => (a & b) >>> 0,
    or: (a, b) => (a | b) >>> 0,
    xor: (a, b) => (a ^ b) >>> 0,
    not: (a) => ~a >>> 0,
    shl: (a, b) => (a << b) >>> 0,
    shr: (a, b) => a >>> b,
    popcount,
  },
  bool: {
    ...compares,
    and: (a, b) => a & b,
    or: (a, b) => a | b,
    xor: (a, b) => a ^ b,
    not: (a) => 1 - a,
  },
};

/** The host function of an operation whose operands have the given type; undefined where the operation has no such form. */
export function hostFunction(op: Op, operandType: ExprType): Apply | undefined {
  return tables[operandType][op];
}
