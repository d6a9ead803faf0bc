import { currentTape, type Tape } from '../autodiff/tape.js';
import type { Device } from '../device/device.js';
import { type DType, dtypeBytes } from '../dtype.js';
import { checkShape } from '../tensor/create.js';
import { type Shape, sizeOf, Tensor } from '../tensor/tensor.js';
import { planPointwise } from './broadcast.js';
import { sameShape } from './check.js';
import type { Compiled, PointwiseOperand } from './pointwise.js';
import { type Launch, withNumber } from './pointwise-kernel.js';

// A model asks its ops for few shapes, again and again: what a call was found to be is remembered by what it was given, so that
// the next one of its kind is neither checked nor planned anew.

/** A call that was checked and planned. */
export interface PointwiseCall {
  device: Device;
  compiled: Compiled;
  /** Shape and dtype of each operand; undefined for a number. */
  shapes: readonly (Shape | undefined)[];
  dtypes: readonly (DType | undefined)[];
  /** The dtype that was asked for. */
  asked: DType | undefined;
  /** Of the output. */
  shape: Shape;
  dtype: DType;
  bytes: number;
  label: { shape: Shape; dtype: DType };
  launch: Launch;
}

const mostCalls = 8;

/** What a call does while a tape records. */
export type Recorded = (call: PointwiseCall, operands: readonly PointwiseOperand[], tape: Tape) => Tensor;

/**
 * Runs the call of `op` that takes these operands, `planned` or a remembered one; undefined where there is none. One long function on
 * purpose, as `KernelRunner.runListed`.
 */
export function callPointwise(
  op: object,
  operands: readonly PointwiseOperand[],
  asked: DType | undefined,
  record: Recorded,
  planned?: PointwiseCall,
): Tensor | undefined {
  const count = operands.length;
  let call = planned;
  if (call === undefined) {
    let first = operands[0];
    for (let i = 1; typeof first === 'number' && i < count; i++) first = operands[i];
    if (typeof first !== 'object') return undefined;
    const { device } = first;
    const calls = device?.remembered.get(op) as PointwiseCall[] | undefined;
    if (calls === undefined) return undefined;
    next: for (let c = 0; c < calls.length; c++) {
      const other = calls[c] as PointwiseCall;
      const { shapes, dtypes } = other;
      if (shapes.length !== count || other.asked !== asked) continue;
      for (let i = 0; i < count; i++) {
        const operand = operands[i] as PointwiseOperand;
        const shape = shapes[i];
        if (typeof operand === 'number') {
          if (shape !== undefined) continue next;
          continue;
        }
        if (shape === undefined || operand.dtype !== dtypes[i] || operand.device !== device) continue next;
        if (!operand.contiguous || (operand.offset & 3) !== 0) return undefined;
        if (operand.shape !== shape && !sameShape(operand.shape, shape)) continue next;
      }
      if (c > 0) {
        calls[c] = calls[0] as PointwiseCall;
        calls[0] = other;
      }
      call = other;
      break;
    }
    if (call === undefined) return undefined;
  }
  const tape = currentTape();
  if (tape !== null) return record(call, operands, tape);
  // nothing to record and nothing made but the output: no scope
  const { device, launch } = call;
  const out = new Tensor(device, device.allocate(call.bytes, call.label), call.dtype, call.shape, undefined, 0);
  try {
    const tensors = new Array<Tensor | undefined>(count + 1);
    let { values } = launch;
    for (let i = 0; i < count; i++) {
      const operand = operands[i] as PointwiseOperand;
      if (typeof operand !== 'number') tensors[i] = operand;
      else values = withNumber(values, launch.values, i, operand);
    }
    tensors[count] = out;
    launch.kernel.runListed(device, launch.spec, tensors, values, launch.grid);
  } catch (error) {
    out.dispose();
    throw error;
  }
  return out;
}

/** Plans a call, and remembers it where operands of these shapes and dtypes are always read alike. */
export function planCall(
  op: object,
  compiled: Compiled,
  device: Device,
  operands: readonly PointwiseOperand[],
  shape: Shape,
  dtype: DType,
  asked: DType | undefined,
): PointwiseCall {
  checkShape(compiled.name, shape);
  const size = sizeOf(shape);
  const call: PointwiseCall = {
    device,
    compiled,
    shapes: operands.map((operand) => (typeof operand === 'number' ? undefined : operand.shape)),
    dtypes: operands.map((operand) => (typeof operand === 'number' ? undefined : operand.dtype)),
    shape: Object.isFrozen(shape) ? shape : Object.freeze([...shape]),
    asked,
    dtype,
    bytes: size * dtypeBytes(dtype),
    label: { shape, dtype },
    launch: compiled.forward.launch(planPointwise(shape, operands), size),
  };
  if (operands.every((operand) => typeof operand === 'number' || (operand.contiguous && operand.offset % 4 === 0))) {
    let calls = device.remembered.get(op) as PointwiseCall[] | undefined;
    if (!calls) device.remembered.set(op, (calls = []));
    calls.unshift(call);
    if (calls.length > mostCalls) calls.pop();
  }
  return call;
}
