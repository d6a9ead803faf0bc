// TensorFlow.js on its WebGPU backend: three unfused ops.
import { headsFirst, provideNavigator, readArguments, report, wallTimes, worstError } from './common.mjs';

await provideNavigator();
const tf = await import('@tensorflow/tfjs-core');
await import('@tensorflow/tfjs-backend-webgpu');
await tf.setBackend('webgpu');
await tf.ready();
const { p, repeats, x } = readArguments();
const { tokens, heads, dim } = p;
const shape = [heads, tokens, dim];
const [q, k, v] = [x.q, x.k, x.v].map((values) => tf.tensor3d(headsFirst(values, p), shape));
const attend = () =>
  tf.tidy(() => {
    const logits = tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(dim));
    return tf.matMul(tf.softmax(logits), v);
  });
const work = async () => {
  const out = attend();
  const corner = tf.slice3d(out, [heads - 1, tokens - 1, 0], [1, 1, dim]); // waits for all, reads little
  await corner.data();
  tf.dispose([out, corner]);
};
const out = attend();
const error = worstError(p, x, (token, head) => (head * tokens + token) * dim, await out.data());
out.dispose();
report({ name: 'tfjs-webgpu', version: tf.version_core, error, ...(await wallTimes(work, repeats)) });
