// One case an op for the compile test: shapes that reach its different texts (aligned or odd rows, long ones, few or many).
import { type Device, type FloatDType, RandomStream, type Tensor, zeros } from '../src/index.js';
import { expr } from '../src/internal.js';
import * as ops from '../src/ops/index.js';

/** What a case works on: tensors of the dtype under test, all zeros. */
export class Operands {
  constructor(
    readonly device: Device,
    readonly dtype: FloatDType,
  ) {}
  float(...shape: number[]): Tensor {
    return zeros(this.device, shape, { dtype: this.dtype });
  }
  f32(...shape: number[]): Tensor {
    return zeros(this.device, shape);
  }
  index(...shape: number[]): Tensor {
    return zeros(this.device, shape, { dtype: 'u32' });
  }
  random(): RandomStream {
    return new RandomStream(1);
  }
}

export type Outputs = Tensor | readonly Tensor[];
/** `inputs` are differentiated where there are any and `run` gives floats. */
export type Case = (o: Operands) => { inputs: Tensor[]; run: () => Outputs };

const forward =
  (f: (o: Operands) => Outputs): Case =>
  (o) => ({ inputs: [], run: () => f(o) });
/** The op of float operands of these shapes, with gradients. */
const through =
  (f: (...x: Tensor[]) => Outputs, ...shapes: number[][]): Case =>
  (o) => {
    const inputs = shapes.map((shape) => o.float(...shape));
    return { inputs, run: () => f(...inputs) };
  };
/** As `through`, in f32 only. */
const inF32 =
  (f: (...x: Tensor[]) => Outputs, ...shapes: number[][]): Case =>
  (o) => {
    const inputs = shapes.map((shape) => o.f32(...shape));
    return { inputs, run: () => f(...inputs) };
  };
const several =
  (...cases: Case[]): Case =>
  (o) => {
    const made = cases.map((c) => c(o));
    return { inputs: made.flatMap(({ inputs }) => inputs), run: () => made.flatMap(({ run }) => run()) };
  };

// by name: a namespace has no computed members
const op = { ...ops };
const gated = ops.pointwise(expr((a, b) => a.mul(b.sigmoid())));
const rows = [3, 40];
const unary = (
  [
    'relu',
    'sigmoid',
    'tanh',
    'silu',
    'softplus',
    'logSigmoid',
    'erf',
    'elu',
    'neg',
    'abs',
    'square',
    'exp',
    'log',
    'sqrt',
    'rsqrt',
    'sin',
    'cos',
    'floor',
    'round',
  ] as const
).map((name) => [name, through((x) => op[name](x as Tensor), rows)] as const);
const binary = (['add', 'sub', 'mul', 'div', 'minimum', 'maximum', 'pow'] as const).map(
  (name) =>
    [
      name,
      several(
        through((x, y) => op[name](x as Tensor, y as Tensor), rows, rows),
        through((x, y) => op[name](x as Tensor, y as Tensor), rows, [40]),
        through((x) => op[name](x as Tensor, 2), [3, 7]),
      ),
    ] as const,
);
const compared = (['eq', 'ne', 'lt', 'le', 'gt', 'ge'] as const).map(
  (name) => [name, forward((o) => op[name](o.float(...rows), o.float(...rows)))] as const,
);
const reduced = (['sum', 'mean', 'max', 'min', 'logsumexp', 'l2norm'] as const).map(
  (name) =>
    [
      name,
      several(
        ...[undefined, -1, 0].flatMap((axis) =>
          [rows, [3, 7], [2, 5000]].map((shape) => through((x) => op[name](x as Tensor, axis), shape)),
        ),
      ),
    ] as const,
);

export const opCases: Record<string, Case> = {
  ...Object.fromEntries([...unary, ...binary, ...compared, ...reduced]),
  gelu: several(
    through((x) => ops.gelu(x as Tensor), rows),
    through((x) => ops.gelu(x as Tensor, { approximate: 'tanh' }), rows),
  ),
  clamp: through((x) => ops.clamp(x as Tensor, -1, 1), rows),
  where: (o) => {
    const [a, b, condition] = [o.float(...rows), o.float(...rows), zeros(o.device, rows, { dtype: 'u8' })];
    return { inputs: [a, b], run: () => ops.where(condition, a, b) };
  },
  cast: several(
    ...(['f32', 'f16', 'i32', 'u32', 'u8'] as const).map((to) => forward((o) => ops.cast(o.float(...rows), to))),
    through((x) => ops.cast(x as Tensor, 'f32'), rows),
    forward((o) => ops.cast(o.index(5), o.dtype)),
  ),
  pointwise: through((x, y) => gated(x as Tensor, y as Tensor), rows, rows),
  copyInto: forward((o) => {
    const target = o.float(4, 8);
    ops.copyInto(target, 1);
    ops.copyInto(target, o.f32(4, 8));
    ops.copyInto(ops.slice(target, 1, 1, 4), o.float(4, 3));
    return target;
  }),
  cumsum: several(
    ...[0, 1].flatMap((axis) => [
      through((x) => ops.cumsum(x as Tensor, axis), [9, 600]),
      through((x) => ops.cumsum(x as Tensor, axis, { reverse: true }), [3, 5000]),
    ]),
  ),
  rfft: several(
    inF32((x) => Object.values(ops.rfft(x as Tensor)) as Tensor[], [2, 64]),
    inF32((x) => Object.values(ops.rfft(x as Tensor, { length: 8192 })) as Tensor[], [1, 5000]),
  ),
  irfft: inF32((a, b) => ops.irfft(a as Tensor, b as Tensor), [2, 33], [2, 33]),
  embedding: (o) => {
    const [table, ids] = [o.float(9, 8), o.index(2, 5)];
    return { inputs: [table], run: () => ops.embedding(table, ids) };
  },
  indexSelect: (o) => {
    const [x, ids] = [o.float(9, 3, 2), o.index(5)];
    return { inputs: [x], run: () => ops.indexSelect(x, ids) };
  },
  takeAlongAxis: (o) => {
    const [x, ids] = [o.float(4, 6), o.index(4, 2)];
    return { inputs: [x], run: () => ops.takeAlongAxis(x, ids) };
  },
  scatterAdd: (o) => {
    const [x, ids] = [o.float(700, 8), o.index(700)];
    return { inputs: [x], run: () => ops.scatterAdd(x, ids, 5) };
  },
  oneHot: forward((o) => ops.oneHot(o.index(5), 4, { dtype: o.dtype })),
  indirectGrid: forward((o) => ops.indirectGrid(o.index(1), { perWorkgroup: 64, most: 1000 })),
  concat: several(
    through((a, b) => ops.concat([a as Tensor, b as Tensor], 1), [2, 3], [2, 5]),
    through((a, b) => ops.concat([a as Tensor, b as Tensor], 0), [2, 8], [3, 8]),
  ),
  stack: through((a, b) => ops.stack([a as Tensor, b as Tensor], 1), rows, rows),
  pad: through(
    (x) =>
      ops.pad(
        x as Tensor,
        [
          [1, 0],
          [2, 3],
        ],
        { value: 1 },
      ),
    [3, 5],
  ),
  cholesky: inF32((a) => ops.cholesky(a as Tensor), [2, 8, 8]),
  solveTriangular: several(
    inF32((l, b) => ops.solveTriangular(l as Tensor, b as Tensor), [2, 8, 8], [2, 8, 3]),
    inF32((l, b) => ops.solveTriangular(l as Tensor, b as Tensor, { transpose: true }), [2, 8, 8], [2, 8, 3]),
  ),
  matmul: several(
    through((a, b) => ops.matmul(a as Tensor, b as Tensor), [2, 64, 48], [48, 96]),
    through((a, b) => ops.matmul(a as Tensor, b as Tensor), [2, 7, 5], [2, 5, 3]),
    through((a, b) => ops.matmul(a as Tensor, b as Tensor), [1, 256], [256, 300]),
    through((a, b) => ops.matmul(a as Tensor, b as Tensor, { transposeA: true }), [256, 128], [256, 128]),
    through(
      (a, b, c) => ops.matmul(a as Tensor, b as Tensor, { transposeB: true, bias: c as Tensor, activation: 'silu', precision: 'f16' }),
      [160, 64],
      [64, 64],
      [64],
    ),
    through((a, b, c) => ops.matmul(a as Tensor, b as Tensor, { addTo: c as Tensor }), [33, 31], [31, 17], [33, 17]),
    through((a, b) => ops.matmul(a as Tensor, b as Tensor), [16, 20_000], [20_000, 16]),
  ),
  permuteTokens: through((x) => ops.permuteTokens(x as Tensor, ops.tileOrder([4, 5], [2, 2])), [2, 20, 8]),
  permuteTokensOf: through(
    (x, y) => ops.permuteTokensOf([x as Tensor, y as Tensor], ops.tileOrder([4, 5], [2, 2])),
    [2, 20, 8],
    [2, 20, 8],
  ),
  uniform: forward((o) => ops.uniform(o.device, [9], { random: o.random(), dtype: o.dtype, low: -1, high: 1 })),
  normal: forward((o) => ops.normal(o.device, [9], { random: o.random(), dtype: o.dtype })),
  bernoulli: forward((o) => ops.bernoulli(o.device, [9], { random: o.random(), probability: 0.5 })),
  dropout: through((x) => ops.dropout(x as Tensor, { rate: 0.5, random: new RandomStream(1) }), rows),
  recurrence: several(
    inF32((a, b) => ops.recurrence(a as Tensor, b as Tensor), [2, 300, 8], [2, 300, 8]),
    inF32((a, b, s) => ops.recurrence(a as Tensor, b as Tensor, { initialState: s as Tensor }), [1, 7, 5], [1, 7, 5], [1, 5]),
  ),
  argmax: several(
    forward((o) => ops.argmax(o.float(3, 40), -1)),
    forward((o) => ops.argmax(o.float(3, 40))),
  ),
  argmin: several(
    forward((o) => ops.argmin(o.float(3, 40), 0)),
    forward((o) => ops.argmin(o.float(3, 5000), -1)),
  ),
  searchSorted: several(
    forward((o) => ops.searchSorted(o.float(2, 9), o.float(2, 4))),
    forward((o) => ops.searchSorted(o.index(9), o.index(4), { side: 'right' })),
  ),
  reshape: several(
    through((x) => ops.reshape(x as Tensor, [6, 2]), [3, 4]),
    through((x) => ops.reshape(ops.slice(x as Tensor, 1, 1, 3), [6]), [3, 4]),
  ),
  permute: several(
    through((x) => ops.permute(x as Tensor, [1, 0, 2]), [2, 3, 4]),
    through((x) => ops.permute(x as Tensor, [2, 0, 1]), [40, 33, 4]),
  ),
  transpose: through((x) => ops.transpose(x as Tensor), [40, 36]),
  squeeze: through((x) => ops.squeeze(x as Tensor), [1, 4, 1]),
  unsqueeze: through((x) => ops.unsqueeze(x as Tensor, 0), [4]),
  broadcastTo: through((x) => ops.broadcastTo(x as Tensor, [3, 4]), [3, 1]),
  flip: through((x) => ops.flip(x as Tensor, 1), [3, 4]),
  slice: through((x) => ops.slice(x as Tensor, 1, 1, 4), [3, 6]),
  split: through((x) => ops.split(x as Tensor, [4, 2]), [3, 6]),
  sort: several(...[5, 100, 3000].map((n) => through((x) => ops.sort(x as Tensor).values, [2, n]))),
  argsort: forward((o) => ops.argsort(o.float(2, 3000), { descending: true })),
  sortPairs: several(
    forward((o) => Object.values(ops.sortPairs(o.index(2, 3000), o.index(2, 3000)))),
    forward((o) => Object.values(ops.sortPairs(o.index(2, 50), o.index(2, 50)))),
  ),
  topK: several(...[40, 3000].map((n) => through((x) => ops.topK(x as Tensor, 4).values, [2, n]))),
  crossEntropy: (o) => {
    const [logits, odd, targets] = [o.float(6, 40), o.float(6, 37), o.index(6)];
    return {
      inputs: [logits, odd],
      run: () => [
        ops.crossEntropy(logits, targets),
        ops.crossEntropy(odd, targets, { reduction: 'none', ignoreIndex: 3 }),
        ops.crossEntropy(logits, targets, { reduction: 'sum' }),
      ],
    };
  },
  klDivergence: through((a, b) => ops.klDivergence(a as Tensor, b as Tensor), rows, rows),
  mse: through((a, b) => ops.mse(a as Tensor, b as Tensor), rows, rows),
  layerNorm: several(
    through((x, w, b) => ops.layerNorm(x as Tensor, w, b), rows, [40], [40]),
    through((x) => ops.layerNorm(x as Tensor), [3, 37]),
    through((x, w, b) => ops.layerNorm(x as Tensor, w, b), [2, 3000], [3000], [3000]),
  ),
  rmsNorm: several(
    through((x, w) => ops.rmsNorm(x as Tensor, w), rows, [40]),
    through((x) => ops.rmsNorm(x as Tensor), [3, 37]),
  ),
  l2Normalize: several(
    through((x) => ops.l2Normalize(x as Tensor), rows),
    through((x) => ops.l2Normalize(x as Tensor, { axis: 0 }), rows),
  ),
  softmax: several(...[rows, [3, 37], [2, 5000]].map((shape) => through((x) => ops.softmax(x as Tensor), shape))),
  logSoftmax: several(...[rows, [3, 37]].map((shape) => through((x) => ops.logSoftmax(x as Tensor), shape))),
  rope: several(
    through((x) => ops.rope(x as Tensor), [1, 5, 2, 16]),
    through((x) => ops.rope(x as Tensor, { interleaved: true }), [1, 5, 2, 16]),
  ),
  conv1d: several(
    through((x, w) => ops.conv1d(x as Tensor, w as Tensor, { padding: 'causal' }), [2, 20, 8], [3, 8, 12]),
    through(
      (x, w, b) => ops.conv1d(x as Tensor, w as Tensor, { padding: 'same', groups: 8, bias: b as Tensor, dilation: 2 }),
      [2, 20, 8],
      [3, 1, 8],
      [8],
    ),
  ),
  conv2d: several(
    through((x, w) => ops.conv2d(x as Tensor, w as Tensor, { stride: 2 }), [1, 9, 9, 4], [3, 3, 4, 6]),
    through((x, w) => ops.conv2d(x as Tensor, w as Tensor, { padding: 'same', groups: 6 }), [1, 7, 7, 6], [3, 3, 1, 6]),
  ),
};
