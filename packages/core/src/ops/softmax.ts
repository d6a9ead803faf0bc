import { apply } from '../autodiff/tape.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { laneArguments, softmaxState, sumState } from '../kernel/wgsl/lanes.js';
import { stridedOffset } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf, expectFloat } from './check.js';
import { itemSum, planRow, rowGrid, rowHead, type RowSpec, rowsOf, rowSweeps, rowTier, rowType, rowUniforms } from './rows.js';
import { transpose } from './shape.js';

type SoftmaxSpec = RowSpec & { log: boolean };

/** Joins item `x` into the running maximum and sum `own`. */
export function softmaxStep(spec: RowSpec): string {
  return spec.width === 4
    ? 'let m = max(max(x.x, x.y), max(x.z, x.w)); own = combine(own, State(m, dot(exp(x - m), vec4f(1.0))));'
    : 'own = combine(own, State(x, 1.0));';
}

// Softmax of rows, or its logarithm.
// tile    256 / lanes rows a workgroup; a row of up to 8,192 elements stays in registers
// bytes   reads rows x n x size (twice for longer rows), writes as much
// limits  n >= 1; statistics in f32; a row of NEG gives zeros
// source  Milakov, Gimelshein 2018, algorithm 3 (online normaliser)
const softmaxRows = defineKernel({
  name: 'softmax-rows',
  bindings: { x: read<SoftmaxSpec>('float', { width: (s) => s.width }), out: write<SoftmaxSpec>('float', { width: (s) => s.width }) },
  uniforms: rowUniforms('x'),
  modules: [stridedOffset],
  tier: rowTier,
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const sweeps = rowSweeps(spec, { x: 'load_x(xRow + j)' });
    return `${rowHead(spec, softmaxState, ['x'])}
  var own = State(NEG, 0.0);
  ${sweeps.first(softmaxStep(spec))}
  let all = reduceLanes(own, lane${laneArguments(spec.form)});
  if (!live) { return; }
  ${
    spec.log
      ? `let lse = all.a + log(all.b);
  ${sweeps.again('store_out(to + j, x - lse);')}`
      : `let factor = select(1.0 / all.b, 0.0, all.a <= 0.5 * NEG);
  ${sweeps.again('store_out(to + j, exp(x - all.a) * factor);')}`
  }
}`;
  },
});

// Gradient of softmax: y (g - sum(y g)); of its logarithm: g - exp(y) sum(g).
// tile    as softmax-rows
// bytes   reads 2 x rows x n x size (twice for rows beyond registers), writes half of it
const softmaxGradientRows = defineKernel({
  name: 'softmax-gradient-rows',
  bindings: {
    y: read<SoftmaxSpec>('float', { width: (s) => s.width }),
    g: read<SoftmaxSpec>('float', { width: (s) => s.width }),
    out: write<SoftmaxSpec>('float', { width: (s) => s.width }),
  },
  uniforms: rowUniforms('y', 'g'),
  modules: [stridedOffset],
  tier: rowTier,
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const sweeps = rowSweeps(spec, { y: 'load_y(yRow + j)', g: 'load_g(gRow + j)' });
    return `${rowHead(spec, sumState, ['y', 'g'])}
  var own = State(0.0);
  ${sweeps.first(`own.a += ${itemSum(spec, spec.log ? 'g' : 'y * g')};`)}
  let total = reduceLanes(own, lane${laneArguments(spec.form)}).a;
  if (!live) { return; }
  ${sweeps.again(`store_out(to + j, ${spec.log ? 'g - exp(y) * total' : `y * (g - ${rowType(spec)}(total))`});`)}
}`;
  },
});

function forwardRows(x: Tensor, log: boolean): Tensor {
  const out = empty(x.device, x.shape, x.dtype);
  const rows = rowsOf([x]);
  const spec = planRow(rows.n, rows.width, x.device.capabilities);
  softmaxRows.run(x.device, {
    spec: { ...spec, log },
    tensors: { x, out },
    uniforms: { shape: rows.shape, xStrides: rows.strides[0] ?? [], rank: rows.shape.length, rows: rows.rows, n: rows.n },
    grid: rowGrid(rows, spec),
  });
  return out;
}

function backwardRows(y: Tensor, g: Tensor, log: boolean): Tensor {
  const out = empty(y.device, y.shape, y.dtype);
  const rows = rowsOf([y, g]);
  const spec = planRow(rows.n, rows.width, y.device.capabilities);
  const [yStrides = [], gStrides = []] = rows.strides;
  softmaxGradientRows.run(y.device, {
    spec: { ...spec, log },
    tensors: { y, g, out },
    uniforms: { shape: rows.shape, yStrides, gStrides, rank: rows.shape.length, rows: rows.rows, n: rows.n },
    grid: rowGrid(rows, spec),
  });
  return out;
}

function softmaxOp(name: string, x: Tensor, axis: number, log: boolean): Tensor {
  expectFloat(name, 'x', x);
  const at = axisOf(name, x, axis);
  if (at !== x.rank - 1) return transpose(softmaxOp(name, transpose(x, at, -1), -1, log), at, -1);
  return apply({
    name,
    inputs: [x],
    forward: () => forwardRows(x, log),
    saves: (outputs) => outputs,
    backward: ([g], { saved: [y] }) => [g && y ? backwardRows(y, g, log) : null],
  });
}

/**
 * Softmax along an axis.
 * @param x logits, f32 or f16; statistics are f32
 * @param axis default -1; another is transposed to the end and back
 * @returns probabilities, the shape and dtype of x; rows whose logits are all NEG (-1e30) give zeros
 * @throws HeedError SHAPE_MISMATCH when x has no such axis, DTYPE_MISMATCH for integers
 */
export function softmax(x: Tensor, axis = -1): Tensor {
  return softmaxOp('softmax', x, axis, false);
}

/** Logarithm of softmax along an axis, without overflow; as `softmax`. */
export function logSoftmax(x: Tensor, axis = -1): Tensor {
  return softmaxOp('logSoftmax', x, axis, true);
}
