// What the JavaScript peers share: the seeded numbers, rows in float64, wall times, and a navigator on the same Dawn.
// Plain JavaScript, since each runs as a process of its own whose packages are installed on demand and are no dependency of ours.

/** @param {number} x */
function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** The tensor of a name, as src/inputs.ts makes it. @param {string} name @param {number} size */
export function makeInput(name, size) {
  let key = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) key = Math.imul(key ^ name.charCodeAt(i), 0x01000193);
  const [first, second] = [mix(key >>> 0), mix((key + 1) >>> 0)];
  const out = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const h = mix((mix((i ^ first) >>> 0) + second) >>> 0);
    out[i] = ((h & 255) + ((h >>> 8) & 255) + ((h >>> 16) & 255) + (h >>> 24) - 510) / 128;
  }
  return out;
}

/** [tokens, heads, dim] to [heads, tokens, dim]. @param {Float32Array} x @param {Problem} p */
export function headsFirst(x, { tokens, heads, dim }) {
  const out = new Float32Array(x.length);
  for (let t = 0; t < tokens; t++)
    for (let h = 0; h < heads; h++) out.set(x.subarray((t * heads + h) * dim, (t * heads + h + 1) * dim), (h * tokens + t) * dim);
  return out;
}

/**
 * @typedef {{ tokens: number, heads: number, dim: number }} Problem
 * @typedef {{ q: Float32Array, k: Float32Array, v: Float32Array }} Inputs [tokens, heads, dim]
 */

/** A row of dense attention in float64. @param {Problem} p @param {Inputs} x @param {number} token @param {number} head */
function attentionRow({ tokens, heads, dim }, { q, k, v }, token, head) {
  const at = (/** @type {number} */ t) => (t * heads + head) * dim;
  const weights = new Float64Array(tokens);
  let most = -Infinity;
  for (let s = 0; s < tokens; s++) {
    let dot = 0;
    for (let c = 0; c < dim; c++) dot += (q[at(token) + c] ?? 0) * (k[at(s) + c] ?? 0);
    weights[s] = dot / Math.sqrt(dim);
    most = Math.max(most, weights[s] ?? 0);
  }
  let sum = 0;
  for (let s = 0; s < tokens; s++) sum += weights[s] = Math.exp((weights[s] ?? 0) - most);
  const out = new Float64Array(dim);
  for (let s = 0; s < tokens; s++) for (let c = 0; c < dim; c++) out[c] = (out[c] ?? 0) + ((weights[s] ?? 0) / sum) * (v[at(s) + c] ?? 0);
  return out;
}

/**
 * The worst relative error of sampled rows. @param {Problem} p @param {Inputs} x
 * @param {(token: number, head: number) => number} place where a row begins in `got` @param {ArrayLike<number>} got
 */
export function worstError(p, x, place, got) {
  const { tokens, heads, dim } = p;
  let worst = 0;
  for (const [token, head] of [
    [0, 0],
    [Math.floor(tokens / 2), heads >> 1],
    [tokens - 1, heads - 1],
  ]) {
    const expected = attentionRow(p, x, token ?? 0, head ?? 0);
    let apart = 0;
    let length = 0;
    for (let c = 0; c < dim; c++) {
      apart += ((got[place(token ?? 0, head ?? 0) + c] ?? Number.NaN) - (expected[c] ?? 0)) ** 2;
      length += (expected[c] ?? 0) ** 2;
    }
    const error = Math.sqrt(apart / length);
    worst = error <= worst ? worst : error;
  }
  return worst;
}

/** Puts Dawn where browsers have it. Must run before a peer is imported. */
export async function provideNavigator() {
  const { create, globals } = await import('webgpu');
  Object.assign(globalThis, globals);
  const gpu = create(['enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia']);
  Object.assign(globalThis, { heldDawn: gpu }); // a Dawn instance that is collected ends the process
  Object.defineProperty(globalThis, 'navigator', {
    value: { gpu, userAgent: 'node', platform: 'linux', language: 'en' },
    configurable: true,
  });
}

/** Median and quartiles of wall times after warm-up. @param {() => Promise<void>} work @param {number} repeats */
export async function wallTimes(work, repeats) {
  const began = performance.now();
  do await work();
  while (performance.now() - began < 500);
  const times = [];
  for (let i = 0; i < repeats; i++) {
    const started = performance.now();
    await work();
    times.push(performance.now() - started);
  }
  times.sort((a, b) => a - b);
  const at = (/** @type {number} */ share) => times[Math.round(share * (times.length - 1))] ?? Number.NaN;
  return { ms: at(0.5), quartiles: [at(0.25), at(0.75)] };
}

/** `node peer.mjs TOKENS HEADS DIM REPEATS`; the result is the last line of standard output. */
export function readArguments() {
  const [tokens = 512, heads = 4, dim = 64, repeats = 5] = process.argv.slice(2).map(Number);
  const p = { tokens, heads, dim };
  const size = tokens * heads * dim;
  return { p, repeats, x: { q: makeInput('q', size), k: makeInput('k', size), v: makeInput('v', size) } };
}

/** @param {Record<string, unknown>} figures */
export function report(figures) {
  process.stdout.write(`\n${JSON.stringify(figures)}\n`, () => process.exit(0)); // Dawn keeps the process alive
}
