import { apply, type Backward, sameDevices, type Tape, withoutTape } from '../autodiff/tape.js';
import { type DType, type FloatDType, isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import {
  type AnyExpr,
  type Expr,
  expr,
  type ExprFunction,
  type ExprType,
  exprFunction,
  freeNames,
  gradients,
  type Named,
  type NumericType,
  variable,
} from '../kernel/expr/index.js';
import { empty } from '../tensor/create.js';
import { type Shape, Tensor } from '../tensor/tensor.js';
import { broadcastShapes, planPointwise } from './broadcast.js';
import { sameShape } from './check.js';
import { callPointwise, planCall, type PointwiseCall } from './pointwise-calls.js';
import { fusedKernel, type FusedKernel } from './pointwise-kernel.js';
import { sumTo } from './reduce-kernels.js';

/** An operand of a pointwise op: a tensor, or a number (a run-time value, no new kernel). */
export type PointwiseOperand = Tensor | number;

export interface PointwiseOptions {
  /** Name in messages, traces and profiles. Default `function`. */
  name?: string;
  /** Dtype of the output where it is float. Default f32, or f16 when every float operand is f16. */
  dtype?: FloatDType;
}

/** A pointwise function that is ready to run. */
export type Pointwise = (...operands: readonly PointwiseOperand[]) => Tensor;

/**
 * Makes an op from a function of expressions: `pointwise((x, y) => x.mul(y.sigmoid()))(a, b)`. One fused kernel forward; the
 * gradient is one fused kernel, too, followed by sums over the axes along which an operand was stretched.
 *
 * Operands broadcast (NumPy's rule, up to rank 6) and may be strided views; f32 and f16 mix, sums are f32. Inputs typed `bool`
 * take u8 (0 is false), `u32` takes u32 or u8. A bool result is a u8 tensor of 0 and 1. Results that are not float carry no gradient.
 *
 * @param f a lambda over f32 expressions, or `expr(...)` or `typedExpr(...)`
 * @throws HeedError INVALID_ARGUMENT when f uses uniforms, captures or free variables (make them inputs: a number given for an
 *   input is a run-time value); when called: SHAPE_MISMATCH, DTYPE_MISMATCH, LIMIT_EXCEEDED with more than 7 tensors
 */
export function pointwise<T extends ExprType = 'f32'>(
  f: ExprFunction<T> | ((...inputs: Expr<'f32'>[]) => Expr<T> | number),
  options: PointwiseOptions = {},
): Pointwise {
  const who = options.name ?? 'function';
  const op = {};
  let compiled: Compiled | undefined;
  return (...operands) => {
    const out = callPointwise(op, operands, options.dtype, record);
    if (out) return out;
    if (!compiled) {
      const made = typeof f === 'function' ? expr(f) : f;
      checkFunction(who, made);
      compiled = new Compiled(who, made);
    }
    return compute(op, compiled, checkOperands(compiled, operands), operands, options.dtype);
  };
}

/** As `pointwise` for ops whose inputs have one type, that of their tensors; `allowed` says which. */
export function polymorphic(
  name: string,
  arity: number,
  allowed: readonly NumericType[],
  body: (...inputs: Expr<NumericType>[]) => AnyExpr,
): Pointwise {
  const made = new Map<NumericType, Compiled>();
  const op = {};
  return (...operands) => {
    const out = callPointwise(op, operands, undefined, record);
    if (out) return out;
    const first = checkAlike(name, operands, allowed);
    const type = types[first.dtype];
    let compiled = made.get(type);
    if (!compiled) {
      const inputs = Array.from({ length: arity }, (_, i): Named<NumericType> => ({ name: `x${i}`, type }));
      compiled = new Compiled(name, exprFunction(inputs, body(...inputs.map((input) => variable(input.name, type)))));
      made.set(type, compiled);
    }
    return compute(op, compiled, first, operands);
  };
}

const types: Record<DType, NumericType> = { f32: 'f32', f16: 'f32', i32: 'i32', u32: 'u32', u8: 'u32' };

/** The first tensor of operands that must have one type. */
function checkAlike(name: string, operands: readonly PointwiseOperand[], allowed: readonly NumericType[]): Tensor {
  let first: Tensor | undefined;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i] as PointwiseOperand;
    if (typeof operand === 'number') continue;
    first ??= operand;
    if (types[operand.dtype] !== types[first.dtype]) {
      throw new HeedError(
        'DTYPE_MISMATCH',
        `${name}: operands are ${first.describe()} and ${operand.describe()}; both must be float, i32 or u32, convert one with cast()`,
      );
    }
    if (operand.device !== first.device) sameDevices(name, [first, operand]);
  }
  if (!first) throw noTensor(name);
  if (allowed.includes(types[first.dtype])) return first;
  throw new HeedError(
    'DTYPE_MISMATCH',
    `${name}: ${first.describe()} was given; it takes ${allowed.join(', ')} (f32 includes f16), convert with cast()`,
  );
}

/** The one expression type of all tensors among the operands. */
export function commonType(name: string, operands: readonly PointwiseOperand[], allowed: readonly NumericType[]): NumericType {
  return types[checkAlike(name, operands, allowed).dtype];
}

function noTensor(name: string): HeedError {
  return new HeedError('INVALID_ARGUMENT', `${name}: all operands are numbers; at least one must be a tensor`);
}

function checkFunction(who: string, f: ExprFunction<ExprType>): void {
  const names = [...f.free, ...f.uniforms, ...f.captures].map(({ name }) => name);
  if (names.length > 0) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `pointwise ${who}: the expression uses ${names.join(', ')} besides its inputs; make each an input, numbers may be given for inputs`,
    );
  }
}

/** A typed function with its kernels, made as they are needed. */
export class Compiled {
  readonly forward: FusedKernel;
  private readonly backwards: Map<string, Gradient[]> = new Map();
  private readonly gradientKernels: Map<string, GradientKernel> = new Map();

  constructor(
    readonly name: string,
    readonly f: ExprFunction<ExprType>,
  ) {
    this.forward = fusedKernel({ name, inputs: f.inputs, bodies: [f.body] });
  }

  /** Gradients by the inputs that `wanted` marks, and what they read. */
  gradients(wanted: readonly boolean[]): Gradient[] {
    const id = wanted.map(Number).join('');
    let list = this.backwards.get(id);
    if (!list) this.backwards.set(id, (list = this.derive(wanted)));
    return list;
  }

  /** The kernel of some gradients together. */
  gradientKernel(batch: readonly Gradient[]): GradientKernel {
    const id = batch.map(({ input }) => input).join();
    let found = this.gradientKernels.get(id);
    if (!found) {
      const { inputs } = this.f;
      const reads = inputs.map((_, i) => i).filter((i) => batch.some((g) => g.reads.includes(i)));
      const named: Named[] = [...reads.map((i) => inputs[i]!), { name: cotangentName, type: 'f32' }];
      found = { kernel: fusedKernel({ name: `${this.name}-gradient`, inputs: named, bodies: batch.map((g) => g.body) }), reads };
      this.gradientKernels.set(id, found);
    }
    return found;
  }

  private derive(wanted: readonly boolean[]): Gradient[] {
    const { inputs, body } = this.f;
    const chosen = inputs.map((_, i) => i).filter((i) => wanted[i]);
    const seeded = (body as Expr<'f32'>).mul(variable(cotangentName, 'f32'));
    const bodies = gradients(
      seeded,
      chosen.map((i) => ({ op: 'variable', name: inputs[i]?.name ?? '' })),
    );
    return chosen.map((input, i) => {
      const body = bodies[i] as Expr<'f32'>;
      const names = new Set(freeNames(body).variables.map(({ name }) => name));
      const reads = inputs.map((_, j) => j).filter((j) => names.has(inputs[j]?.name ?? ''));
      return { input, body, reads, zero: body.op === 'const', passes: body.op === 'variable' && body.payload.name === cotangentName };
    });
  }
}

const cotangentName = 'cotangent';

interface GradientKernel {
  kernel: FusedKernel;
  /** Inputs that it takes, in front of the cotangent. */
  reads: readonly number[];
}

/** The gradient by one input: an expression of inputs and the cotangent. */
interface Gradient {
  input: number;
  body: Expr<'f32'>;
  /** Inputs that the expression reads. */
  reads: readonly number[];
  /** No gradient flows. */
  zero: boolean;
  /** The gradient is the cotangent itself. */
  passes: boolean;
}

/** The first tensor among the operands. @throws HeedError where they are not what the function takes, or of two devices */
function checkOperands({ name, f }: Compiled, operands: readonly PointwiseOperand[]): Tensor {
  if (operands.length !== f.inputs.length) {
    throw new HeedError('INVALID_ARGUMENT', `${name}: ${operands.length} operands were given; it takes ${f.inputs.length}`);
  }
  let first: Tensor | undefined;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i];
    if (!(operand instanceof Tensor)) continue;
    const type = f.inputs[i]?.type;
    const own = types[operand.dtype];
    if (own !== type && (type !== 'bool' || own === 'f32')) {
      throw new HeedError(
        'DTYPE_MISMATCH',
        `${name}: operand ${i} is ${operand.describe()}; it must be ${type === 'bool' ? 'u8 (0 is false)' : type === 'f32' ? 'f32 or f16' : type}, convert it with cast()`,
      );
    }
    first ??= operand;
    if (operand.device !== first.device) sameDevices(name, [first, operand]);
  }
  if (!first) throw noTensor(name);
  return first;
}

/** Runs a compiled function, on the tape where its result is float. `dtype` overrides the dtype of the output. */
export function runPointwise(compiled: Compiled, operands: readonly PointwiseOperand[], dtype?: DType): Tensor {
  const out = callPointwise(compiled, operands, dtype, record);
  return out ?? compute(compiled, compiled, checkOperands(compiled, operands), operands, dtype);
}

/** As `runPointwise` of operands that were checked. */
function compute(op: object, compiled: Compiled, first: Tensor, operands: readonly PointwiseOperand[], dtype?: DType): Tensor {
  const { type } = compiled.f.body;
  const shape = outputShape(compiled.name, first, operands);
  const outDType = dtype ?? (type === 'f32' ? floatOf(operands) : type === 'bool' ? 'u8' : (type as DType));
  const call = planCall(op, compiled, first.device, operands, shape, outDType, dtype);
  return callPointwise(op, operands, dtype, record, call) as Tensor;
}

function record(call: PointwiseCall, operands: readonly PointwiseOperand[], tape: Tape): Tensor {
  const { compiled } = call;
  const { name, f } = compiled;
  const forward = (): Tensor => callPointwise(compiled, operands, undefined, record, call) as Tensor;
  const inputs = operands.filter((operand) => typeof operand !== 'number');
  const tracked = operands.map((operand) => typeof operand !== 'number' && isFloat(operand.dtype) && tape.isTracked(operand));
  if (f.body.type !== 'f32' || !tracked.includes(true)) return withoutTape(forward);
  const list = compiled.gradients(tracked);
  const saved = operands.map((_, i) => i).filter((i) => typeof operands[i] !== 'number' && list.some((g) => g.reads.includes(i)));
  return apply({
    name,
    inputs,
    forward,
    saves: () => saved.map((i) => operands[i] as Tensor),
    backward: backwardOf(compiled, operands, list, saved),
  });
}

/** The shape that all operands broadcast to: mostly that of the first tensor. */
function outputShape(name: string, first: Tensor, operands: readonly PointwiseOperand[]): Shape {
  const { shape } = first; // results share the lengths of their operands
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i] as PointwiseOperand;
    if (typeof operand === 'number' || operand.shape === shape || sameShape(operand.shape, shape)) continue;
    return broadcastShapes(
      name,
      operands.filter((other) => typeof other !== 'number').map((t) => t.shape),
    );
  }
  return shape;
}

/** f16 where all floats are f16, else f32. */
function floatOf(operands: readonly PointwiseOperand[]): FloatDType {
  let halves = false;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i] as PointwiseOperand;
    if (typeof operand === 'number') continue;
    if (operand.dtype === 'f32') return 'f32';
    if (operand.dtype === 'f16') halves = true;
  }
  return halves ? 'f16' : 'f32';
}

function backwardOf(
  compiled: Compiled,
  operands: readonly PointwiseOperand[],
  list: readonly Gradient[],
  savedInputs: readonly number[],
): Backward {
  // what is captured must not hold tensors: numbers, shapes and dtypes only
  const numbers = operands.map((operand) => (typeof operand === 'number' ? operand : undefined));
  const layouts = operands.map((operand) => (typeof operand === 'number' ? undefined : { shape: operand.shape, dtype: operand.dtype }));
  return ([cotangent], { saved }) => {
    const grads = layouts.map((): Tensor | null => null);
    if (!cotangent) return grads.filter((_, i) => layouts[i]);
    const again = numbers.map((value, i) => value ?? saved[savedInputs.indexOf(i)]);
    const pending: Gradient[] = [];
    for (const g of list) {
      const target = layouts[g.input];
      if (!target || g.zero) continue;
      const stretched = !sameShape(target.shape, cotangent.shape);
      if (g.reads.every((i) => numbers[i] !== undefined)) {
        // linear in the cotangent with constant factors: sum first, then apply on what is left
        const summed = stretched ? sumTo(cotangent, target.shape, g.passes ? target.dtype : 'f32') : cotangent;
        grads[g.input] =
          g.passes && summed.dtype === target.dtype ? summed : evaluateGradients(compiled, [g], again, summed, [target.dtype])[0]!;
      } else pending.push(g);
    }
    for (const batch of batches(pending)) {
      const dtypes = batch.map(({ input }) => (sameShape(layouts[input]!.shape, cotangent.shape) ? layouts[input]!.dtype : 'f32'));
      const outs = evaluateGradients(compiled, batch, again, cotangent, dtypes);
      batch.forEach(({ input }, i) => {
        const target = layouts[input]!;
        const out = outs[i]!;
        grads[input] = sameShape(target.shape, out.shape) ? out : sumTo(out, target.shape, target.dtype);
      });
    }
    return grads.filter((_, i) => layouts[i]);
  };
}

/** Gradients that fit one kernel: at most 8 bindings for what they read, the cotangent and what they write. */
function batches(list: readonly Gradient[]): Gradient[][] {
  const out: Gradient[][] = [];
  for (const g of list) {
    const batch = out.at(-1);
    const reads = new Set([...(batch ?? []).flatMap((other) => other.reads), ...g.reads]);
    if (batch && reads.size + 1 + batch.length + 1 <= 8) batch.push(g);
    else out.push([g]);
  }
  return out;
}

function evaluateGradients(
  compiled: Compiled,
  batch: readonly Gradient[],
  operands: readonly (Tensor | number | undefined)[],
  cotangent: Tensor,
  dtypes: readonly DType[],
): Tensor[] {
  const { kernel, reads } = compiled.gradientKernel(batch);
  const given = [...reads.map((i) => operands[i]!), cotangent];
  const outs = dtypes.map((dtype) => empty(cotangent.device, cotangent.shape, dtype));
  kernel.run(cotangent.device, planPointwise(cotangent.shape, given), given, outs);
  return outs;
}
