// jax-js on WebGPU, compiled by jit.
import { provideNavigator, readArguments, report, wallTimes, worstError } from './common.mjs';

provideIteratorHelpers();
await provideNavigator();
const { init, defaultDevice, jit, nn, numpy, blockUntilReady } = await import('@jax-js/jax');
await init('webgpu');
defaultDevice('webgpu');
const { p, repeats, x } = readArguments();
const { tokens, heads, dim } = p;
const [q, k, v] = [x.q, x.k, x.v].map((values) => numpy.array(values).reshape([1, tokens, heads, dim]));
await blockUntilReady([q.ref, k.ref, v.ref]);
const attend = jit((/** @type {any} */ a, /** @type {any} */ b, /** @type {any} */ c) => nn.dotProductAttention(a, b, c));
const work = async () => {
  const out = attend(q.ref, k.ref, v.ref);
  await blockUntilReady(out.ref);
  out.dispose();
};
const out = attend(q.ref, k.ref, v.ref);
const error = worstError(p, x, (token, head) => (token * heads + head) * dim, await out.data());
report({ name: 'jax-js', version: '0.1.25', error, ...(await wallTimes(work, repeats)) });

/** jax-js uses helpers of iterators, which Node has from version 22 on. */
function provideIteratorHelpers() {
  const prototype = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));
  /** @type {Record<string, (this: Iterable<unknown>, f: (x: unknown, i: number) => any) => unknown>} */
  const helpers = {
    *map(f) {
      let i = 0;
      for (const item of this) yield f(item, i++);
    },
    *filter(f) {
      let i = 0;
      for (const item of this) if (f(item, i++)) yield item;
    },
    *flatMap(f) {
      let i = 0;
      for (const item of this) yield* f(item, i++);
    },
    toArray() {
      return [...this];
    },
    some(f) {
      return [...this].some(f);
    },
    every(f) {
      return [...this].every(f);
    },
    find(f) {
      return [...this].find(f);
    },
    forEach(f) {
      [...this].forEach(f);
    },
  };
  for (const [name, helper] of Object.entries(helpers))
    if (!(name in prototype)) Object.defineProperty(prototype, name, { value: helper, configurable: true, writable: true });
}
