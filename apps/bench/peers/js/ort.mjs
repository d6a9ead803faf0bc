// onnxruntime-node on its WebGPU provider: MatMul, Mul, Softmax, MatMul. Its fused MultiHeadAttention gives wrong rows on some devices.
import { createRequire } from 'node:module';
import { headsFirst, readArguments, report, wallTimes, worstError } from './common.mjs';

// A model is a protobuf: fields are (number << 3 | kind), kind 0 a varint, kind 2 bytes with their length.
const varint = (/** @type {number} */ value) => {
  const bytes = [];
  for (let left = value; ; left = Math.floor(left / 128)) {
    if (left < 128) return [...bytes, left];
    bytes.push((left % 128) | 128);
  }
};
const number = (/** @type {number} */ field, /** @type {number} */ value) => [...varint(field << 3), ...varint(value)];
const bytes = (/** @type {number} */ field, /** @type {number[]} */ value) => [
  ...varint((field << 3) | 2),
  ...varint(value.length),
  ...value,
];
const text = (/** @type {number} */ field, /** @type {string} */ value) => bytes(field, [...Buffer.from(value)]);

/** @param {string} type @param {string[]} inputs @param {string} output */
const node = (type, inputs, output) => bytes(1, [...inputs.flatMap((name) => text(1, name)), ...text(2, output), ...text(4, type)]);
/** @param {number} field @param {string} name @param {number[]} dims */
const value = (field, name, dims) => {
  const shape = dims.flatMap((dim) => bytes(1, number(1, dim)));
  return bytes(field, [...text(1, name), ...bytes(2, bytes(1, [...number(1, 1), ...bytes(2, shape)]))]);
};

/** @param {import('./common.mjs').Problem} p */
function attentionModel({ tokens, heads, dim }) {
  const scale = [...new Uint8Array(new Float32Array([1 / Math.sqrt(dim)]).buffer)];
  const graph = [
    ...node('MatMul', ['q', 'kT'], 'logits'),
    ...node('Mul', ['logits', 'scale'], 'scaled'),
    ...node('Softmax', ['scaled'], 'p'),
    ...node('MatMul', ['p', 'v'], 'out'),
    ...text(2, 'attention'),
    ...bytes(5, [...number(2, 1), ...text(8, 'scale'), ...bytes(9, scale)]),
    ...value(11, 'q', [heads, tokens, dim]),
    ...value(11, 'kT', [heads, dim, tokens]),
    ...value(11, 'v', [heads, tokens, dim]),
    ...value(12, 'out', [heads, tokens, dim]),
  ];
  return Uint8Array.from([...number(1, 8), ...bytes(7, graph), ...bytes(8, number(2, 17))]);
}

const ort = createRequire(import.meta.url)('onnxruntime-node');
const { p, repeats, x } = readArguments();
const { tokens, heads, dim } = p;
const session = await ort.InferenceSession.create(attentionModel(p), { executionProviders: ['webgpu'] });
const kT = new Float32Array(x.k.length);
const k = headsFirst(x.k, p);
for (let h = 0; h < heads; h++)
  for (let t = 0; t < tokens; t++) for (let c = 0; c < dim; c++) kT[(h * dim + c) * tokens + t] = k[(h * tokens + t) * dim + c] ?? 0;
const feeds = {
  q: new ort.Tensor('float32', headsFirst(x.q, p), [heads, tokens, dim]),
  kT: new ort.Tensor('float32', kT, [heads, dim, tokens]),
  v: new ort.Tensor('float32', headsFirst(x.v, p), [heads, tokens, dim]),
};
const { out } = await session.run(feeds);
const error = worstError(p, x, (token, head) => (head * tokens + token) * dim, out.data);
const times = await wallTimes(async () => void (await session.run(feeds)), repeats);
const note = 'upload and read-back included: the Node binding has no device tensors for this provider';
report({ name: 'onnxruntime-node webgpu', version: '1.30.0', error, note, ...times });
