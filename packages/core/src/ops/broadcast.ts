import { HeedError } from '../errors.js';
import type { Shape } from '../tensor/tensor.js';
import { sameShape } from './check.js';

/** What a plan looks at in an operand; numbers are passed as numbers. */
export interface Layout {
  readonly shape: Shape;
  readonly strides: Shape;
  readonly offset: number;
  readonly size: number;
  readonly contiguous: boolean;
}

/**
 * How each operand is read:
 * `n` a number, `s` one element for all, `v` four in a row as a vector, `b` one element for four neighbours, `g` four elements
 * one by one.
 */
export type Mode = 'n' | 's' | 'v' | 'b' | 'g';

export interface PointwisePlan {
  /**
   * `flat`: all operands lie like the output. `rows`: the last axis is a multiple of 4, a lane takes 4 neighbours of it.
   * `odd`: every element finds its own place.
   */
  form: 'flat' | 'rows' | 'odd';
  /** One `Mode` an operand. */
  modes: string;
  /** Lengths that an item index is taken apart by. */
  shape: readonly number[];
  /** For each operand, what one step along each axis of `shape` adds: vectors for `v`, elements otherwise. */
  strides: readonly (readonly number[])[];
  /** For each operand, elements between the four of an item (`g`). */
  steps: readonly number[];
}

/**
 * The shape that shapes broadcast to (NumPy's rule: aligned at the last axis, a length of 1 stretches).
 * @throws HeedError SHAPE_MISMATCH when two lengths differ and neither is 1
 */
export function broadcastShapes(who: string, shapes: readonly Shape[]): number[] {
  const rank = shapes.reduce((most, shape) => Math.max(most, shape.length), 0);
  const out = new Array<number>(rank).fill(1);
  for (const shape of shapes) {
    for (let i = 0; i < shape.length; i++) {
      const axis = rank - shape.length + i;
      const n = shape[i] ?? 1;
      const m = out[axis] ?? 1;
      if (n === m || n === 1) continue;
      if (m !== 1) {
        throw new HeedError(
          'SHAPE_MISMATCH',
          `${who}: shapes ${shapes.map((s) => `[${s.join(', ')}]`).join(' and ')} do not broadcast: lengths ${m} and ${n} meet ${rank - axis} from the end; ` +
            'lengths must be equal or 1, reshape or permute one operand',
        );
      }
      out[axis] = n;
    }
  }
  return out;
}

const flatPlans: Map<number, PointwisePlan> = new Map();
const flatModes = ['n', 's', 'v'] as const;

/**
 * Chooses how a fused kernel reads its operands. The output is contiguous. Flat plans are few, and this runs for each op, so they
 * are kept.
 */
export function planPointwise(shape: Shape, operands: readonly (Layout | number)[]): PointwisePlan {
  let code = 1; // a digit an operand, behind a leading one
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i] as Layout | number;
    if (typeof operand === 'number') code = 3 * code;
    else if (operand.size === 1) code = 3 * code + 1;
    else if (operand.contiguous && operand.offset % 4 === 0 && (operand.shape === shape || sameShape(shape, operand.shape)))
      code = 3 * code + 2;
    else return stridedPlan(shape, operands);
  }
  let plan = flatPlans.get(code);
  if (!plan) {
    const modes = Array.from(code.toString(3).slice(1), (digit) => flatModes[Number(digit)]).join('');
    flatPlans.set(code, (plan = { form: 'flat', modes, shape: [], strides: [], steps: [] }));
  }
  return plan;
}

function stridedPlan(shape: Shape, operands: readonly (Layout | number)[]): PointwisePlan {
  const all = operands.map((operand) => (typeof operand === 'number' ? shape.map(() => 0) : stridesFor(shape, operand)));
  const merged = mergeJointly(shape, all);
  const last = merged.shape.length - 1;
  const length = merged.shape[last] ?? 1;
  const rows = length % 4 === 0;
  let modes = '';
  const steps: number[] = [];
  const strides = operands.map((operand, o) => {
    const own = merged.strides[o] ?? [];
    const step = own[last] ?? 0;
    steps.push(step);
    if (typeof operand === 'number') {
      modes += 'n';
      return [];
    }
    if (!rows) {
      modes += 'g';
      return own;
    }
    if (step === 0) {
      modes += 'b';
      return own;
    }
    const aligned = step === 1 && operand.offset % 4 === 0 && own.every((stride, axis) => axis === last || stride % 4 === 0);
    modes += aligned ? 'v' : 'g';
    return own.map((stride, axis) => (axis === last ? (aligned ? 1 : 4 * stride) : aligned ? stride / 4 : stride));
  });
  const lengths = [...merged.shape];
  if (rows) lengths[last] = length / 4;
  return { form: rows ? 'rows' : 'odd', modes, shape: lengths, strides, steps };
}

/** Strides of an operand stretched to `shape`: 0 along stretched axes. */
export function stridesFor(shape: Shape, operand: Pick<Layout, 'shape' | 'strides'>): number[] {
  const lead = shape.length - operand.shape.length;
  return shape.map((_, axis) => (axis < lead || operand.shape[axis - lead] === 1 ? 0 : (operand.strides[axis - lead] ?? 0)));
}

/** Merges neighbouring axes that lie behind each other in every operand. */
export function mergeJointly(shape: Shape, all: readonly Shape[]): { shape: number[]; strides: number[][] } {
  const lengths: number[] = [];
  const strides: number[][] = all.map(() => []);
  shape.forEach((n, axis) => {
    if (n === 1) return;
    const last = lengths.length - 1;
    const joins = last >= 0 && all.every((own, o) => strides[o]?.[last] === (own[axis] ?? 0) * n);
    if (joins) lengths[last] = (lengths[last] ?? 1) * n;
    else lengths.push(n);
    all.forEach((own, o) => {
      const list = strides[o];
      if (list) list[lengths.length - 1] = own[axis] ?? 0;
    });
  });
  if (lengths.length === 0) return { shape: [1], strides: all.map(() => [0]) };
  return { shape: lengths, strides };
}
