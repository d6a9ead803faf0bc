import type { AnyExpr, CompareOp, ExprType, Op } from './node.js';

// WGSL of one operation over operands that are names or literals. Functions whose driver versions lose accuracy or overflow
// (sin and cos of large arguments, tanh, erf, softplus) are spelt out; each error bound is in f32 and checked by a test.

const INFIX: Partial<Record<Op, string>> = { add: '+', sub: '-', mul: '*', div: '/', shl: '<<', shr: '>>' };
const COMPARE: Record<CompareOp, string> = { eq: '==', ne: '!=', lt: '<', le: '<=', gt: '>', ge: '>=' };
const CALL: Partial<Record<Op, string>> = {
  abs: 'abs',
  sign: 'sign',
  floor: 'floor',
  ceil: 'ceil',
  round: 'round',
  fract: 'fract',
  sqrt: 'sqrt',
  inverseSqrt: 'inverseSqrt',
  exp: 'exp',
  exp2: 'exp2',
  log: 'log',
  log2: 'log2',
  popcount: 'countOneBits',
  min: 'min',
  max: 'max',
  clamp: 'clamp',
};

/** Text of a node; helper bindings named after `name` go to `emit`. */
export function emitOperation(expr: AnyExpr, args: readonly string[], name: string, emit: (line: string) => void): string {
  const { op, type } = expr;
  const [a = '', b = '', c = ''] = args;
  const from = expr.args[0]!.type;
  const bind = (suffix: string, boundType: ExprType, text: string): string => {
    emit(`let ${name}${suffix}: ${boundType} = ${text};`);
    return `${name}${suffix}`;
  };
  if (op in COMPARE) return `${a} ${COMPARE[op as CompareOp]} ${b}`;
  if (op === 'shl' || op === 'shr') return `${a} ${INFIX[op]} (${b} & 31u)`;
  const infix = INFIX[op];
  if (infix !== undefined) return `${a} ${infix} ${b}`;
  const call = CALL[op];
  if (call !== undefined) return op === 'abs' && from === 'u32' ? a : `${call}(${args.join(', ')})`;
  switch (op) {
    case 'neg':
      return `-${a}`;
    case 'not':
      return type === 'bool' ? `!${a}` : `~${a}`;
    case 'and':
      return type === 'bool' ? `${a} && ${b}` : `${a} & ${b}`;
    case 'or':
      return type === 'bool' ? `${a} || ${b}` : `${a} | ${b}`;
    case 'xor':
      return type === 'bool' ? `${a} != ${b}` : `${a} ^ ${b}`;
    case 'select':
      return `select(${c}, ${b}, ${a})`;
    case 'cast':
      return `${type}(${a})`;
    case 'bitcast':
      return `bitcast<${type}>(${a})`;
    case 'mod':
      return moduloText(type, a, b, bind);
    // A power of a base <= 0 is indeterminate in WGSL; the contract gives 0, and 1 for exponent 0.
    case 'pow':
      return `select(select(0.0, 1.0, ${b} == 0.0), pow(max(${a}, 1.1754943508222875e-38), ${b}), ${a} > 0.0)`;
    case 'sin':
    case 'cos':
      return sineText(op, a, bind);
    case 'tanh':
      return tanhText(a, bind);
    case 'erf':
      return erfText(a, bind);
    case 'sigmoid':
      return `1.0 / (1.0 + exp(min(-${a}, 80.0)))`;
    case 'softplus':
      return softplusText(a, bind);
    default:
      throw new RangeError(`expr: no WGSL for ${op}`);
  }
}

type Bind = (suffix: string, type: ExprType, text: string) => string;

function moduloText(type: ExprType, a: string, b: string, bind: Bind): string {
  if (type === 'u32') return `${a} % ${b}`;
  if (type === 'f32') return `${a} - ${b} * floor(${a} / ${b})`;
  const rest = bind('r', 'i32', `${a} % ${b}`);
  return `select(${rest}, ${rest} + abs(${b}), ${rest} < 0i)`;
}

/** Nested multiply-adds, highest power first. */
function horner(x: string, coefficients: readonly number[]): string {
  return coefficients.slice(1).reduce((text, value) => `(${text} * ${x} + ${spell(value)})`, spell(coefficients[0]!));
}

function spell(value: number): string {
  const digits = String(value);
  const spelt = /[.e]/.test(digits) ? digits : `${digits}.0`;
  return value < 0 ? `(${spelt})` : spelt;
}

/**
 * sin and cos after Cephes' sinf: subtract multiples of pi/2 in three parts, the first two of 8 bits so that their products are exact
 * below 2^16 quarter turns, then minimax polynomials on [-pi/4, pi/4]. Absolute error < 2e-7 for |x| < 1e5.
 */
function sineText(op: 'sin' | 'cos', x: string, bind: Bind): string {
  const turns = bind('k', 'f32', `round(${x} * 0.6366197723675814)`);
  const r = bind('r', 'f32', `((${x} - ${turns} * 1.5703125) - ${turns} * 4.84466552734375e-4) + ${turns} * 6.397578431460715e-7`);
  const z = bind('z', 'f32', `${r} * ${r}`);
  const sine = bind('s', 'f32', `${horner(z, [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1])} * ${z} * ${r} + ${r}`);
  const cosine = bind(
    'c',
    'f32',
    `${horner(z, [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2])} * ${z} * ${z} - 0.5 * ${z} + 1.0`,
  );
  const quarter = bind('q', 'i32', op === 'sin' ? `i32(${turns}) & 3i` : `(i32(${turns}) + 1i) & 3i`);
  const value = bind('v', 'f32', `select(${sine}, ${cosine}, (${quarter} & 1i) == 1i)`);
  return `select(${value}, -${value}, ${quarter} >= 2i)`;
}

/** tanh as an odd 13/6 rational function (Eigen's), clamped where f32 is 1 already: the driver's may give NaN for large |x|. Error < 4e-7. */
function tanhText(x: string, bind: Bind): string {
  const t = bind('t', 'f32', `clamp(${x}, -7.90531110763549805, 7.90531110763549805)`);
  const z = bind('z', 'f32', `${t} * ${t}`);
  const over = horner(
    z,
    [
      -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-8, 1.48572235717979e-5, 6.37261928875436e-4,
      4.89352455891786e-3,
    ],
  );
  const under = horner(z, [1.19825839466702e-6, 1.18534705686654e-4, 2.268434632439e-3, 4.89352518554385e-3]);
  return `${t} * ${over} / ${under}`;
}

/**
 * erf: x times a polynomial in x^2 below 1, 1 - exp(polynomial) above, both least-squares fits. Absolute error < 2e-7,
 * relative < 2.5e-7. Above 4 the result is 1 in f32.
 */
function erfText(x: string, bind: Bind): string {
  const a = bind('a', 'f32', `min(abs(${x}), 4.0)`);
  const z = bind('z', 'f32', `min(${a} * ${a}, 1.0)`);
  const near = bind(
    'n',
    'f32',
    `${x} * ${horner(
      z,
      [
        7.882497112555114e-5, -8.018854993580227e-4, 5.189311942781537e-3, -0.026854328796118102, 0.1128359746348915, -0.37612626903580465,
        1.1283791658815023,
      ],
    )}`,
  );
  const far = bind(
    'f',
    'f32',
    `1.0 - exp(${horner(
      a,
      [
        -1.6485925751451448e-5, 3.7103737304312314e-4, -3.8095184918933763e-3, 0.02401259002622886, -0.10631307691797434,
        -0.6353788691998452, -1.1283832629608919, -8.793370603488171e-5,
      ],
    )})`,
  );
  return `select(sign(${x}) * ${far}, ${near}, ${a} < 1.0)`;
}

/** max(x, 0) + log1p(exp(-|x|)), the logarithm as 2 atanh(t / (2 + t)) by its series: right to f32 also where the result is tiny. */
function softplusText(x: string, bind: Bind): string {
  const t = bind('t', 'f32', `exp(-abs(${x}))`);
  const s = bind('s', 'f32', `${t} / (2.0 + ${t})`);
  const z = bind('z', 'f32', `${s} * ${s}`);
  return `max(${x}, 0.0) + 2.0 * ${s} * ${horner(z, [1 / 15, 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1])}`;
}
