import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, type Tier } from '../src/index.js';
import { apply, defineKernel, empty, read, write } from '../src/internal.js';
import { arraySink, arraySource } from '../src/io/bytes.js';
import { encodeFloats, writeSafetensors } from '../src/io/safetensors.js';
import type { SafetensorsTensor } from '../src/io/safetensors.js';
import { goldenFiles, goldenTests } from '../src/testing/golden-files.js';
import { readGoldenCase } from '../src/testing/golden-case.js';
import { forwardAndGradients, goldenLine, runGoldenCase } from '../src/testing/golden.js';
import type { GoldenMapping, GoldenReport } from '../src/testing/golden.js';

const scaled = (tier: Tier, forms: readonly Tier[]): ReturnType<typeof defineKernel> =>
  defineKernel({
    name: `test-scale-${forms.length}`,
    bindings: { x: read('f32'), out: write('f32') },
    uniforms: { factor: 'f32', size: 'u32' },
    tier,
    forms,
    wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3u) {
      if (id.x < uniforms.size) { store_out(id.x, uniforms.factor * load_x(id.x)); }
    }`,
  }) as ReturnType<typeof defineKernel>;
const plain = scaled('baseline', ['baseline']);
const behind = scaled('baseline', ['baseline', 'subgroups']);

function times(kernel: typeof plain, x: Tensor, factor: number): Tensor {
  const run = (from: Tensor): Tensor => {
    const out = empty(from.device, from.shape);
    kernel.run(from.device, { spec: {}, tensors: { x: from, out }, uniforms: { factor, size: from.size }, grid: [1] });
    return out;
  };
  return apply<Tensor>({
    name: 'times',
    inputs: [x],
    forward: () => run(x),
    backward: ([cotangent]) => [cotangent ? run(cotangent) : null],
  });
}

const mapping: GoldenMapping = {
  'test/double': {
    run: (golden, device) => forwardAndGradients(golden, device, (inputs) => ({ y: times(plain, inputs.get('x'), 2) })),
    compare: { y: 'error' },
  },
  'test/behind': {
    run: (golden, device) => forwardAndGradients(golden, device, (inputs) => ({ y: times(behind, inputs.get('x'), 2) })),
    compare: { y: 'error' },
  },
  'test/wrong': { run: () => ({ y: { shape: [3], values: [2, 4, 7] } }), compare: { y: 'error' }, gradients: false },
  'test/throws': {
    run: (golden, device) => forwardAndGradients(golden, device, (inputs) => ({ y: inputs.get('weights') })),
    compare: { y: 'error' },
  },
  'test/forgets': { run: () => ({}), compare: { y: 'error' } },
  'test/unruled': { run: () => ({ y: { shape: [3], values: [2, 4, 6] } }), compare: {} },
};

const f32 = (name: string, values: number[]): SafetensorsTensor => ({
  name,
  dtype: 'F32',
  shape: [values.length],
  bytes: encodeFloats(Float32Array.from(values), 'F32'),
});

async function caseFile(metadata: Record<string, unknown>, grads = false): Promise<Uint8Array> {
  const fields: Record<string, unknown> = {
    op: 'test/double',
    params: '{}',
    inputs: ['x'],
    outputs: ['y'],
    grads: grads ? ['cotangent_y', 'grad_x'] : [],
    tolerance: { atol: 1e-6, rtol: 1e-6 },
    ...metadata,
  };
  const tensors = [f32('x', [1, 2, 3]), f32('y', [2, 4, 6]), ...(grads ? [f32('cotangent_y', [1, 0, -1]), f32('grad_x', [2, 0, -2])] : [])];
  const sink = arraySink();
  await writeSafetensors(
    sink,
    tensors,
    Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, typeof value === 'string' ? value : JSON.stringify(value)])),
  );
  return sink.bytes();
}

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const report = async (op: string, grads = false, tier?: Tier): Promise<GoldenReport> =>
  runGoldenCase(await readGoldenCase('a.safetensors', arraySource(await caseFile({ op }, grads))), mapping, device, tier);

test('a case that matches passes, with its gradients and the kernels that ran', async () => {
  const got = await report('test/double', true);
  expect(got.message).toBeUndefined();
  expect(Object.keys(got.comparisons)).toEqual(['y', 'grad_x']);
  expect(goldenLine(got)).toBe('pass test/double a.safetensors 0 subgroups test-scale-1@baseline');
});

test('a kernel behind the tier asked for makes the case fall back, without a tier it passes', async () => {
  const got = await report('test/behind', false, 'subgroups');
  expect(goldenLine(got)).toBe('fell-back test/behind a.safetensors 0 subgroups test-scale-2@baseline');
  expect(got.message).toContain(
    'ran kernel test-scale-2 at tier baseline; it has forms for baseline, subgroups and subgroups was asked for',
  );
  expect((await report('test/behind')).status).toBe('pass');
  expect((await report('test/behind', false, 'baseline')).status).toBe('pass');
  expect((await report('test/double', false, 'subgroups')).status).toBe('pass');
});

test('wrong, missing and unruled outputs fail with the reason', async () => {
  const wrong = await report('test/wrong');
  expect(goldenLine(wrong)).toBe('fail test/wrong a.safetensors 1.4e+5 subgroups -');
  expect(wrong.message).toContain('y: 1 of 3 values are off, the worst at [2]');
  expect((await report('test/forgets')).message).toBe('golden: test/forgets y: the mapping did not return it');
  expect((await report('test/unruled')).message).toBe('golden: test/unruled y: the mapping states no compare rule for this output');
  const throws = await report('test/throws', true);
  expect(goldenLine(throws)).toBe('fail test/throws a.safetensors infinite subgroups -');
  expect(throws.message).toContain('test/throws needs the input "weights"; the case has x');
});

test('an op that nobody maps, or maps without its gradients, is unsupported', async () => {
  const unmapped = await report('toString');
  expect(goldenLine(unmapped)).toBe('unsupported toString a.safetensors - subgroups -');
  expect((await report('linear/lla.cg')).message).toBe(
    'golden: linear/lla.cg is not mapped by any package here; add it to packages/linear/test/golden.ts or pass --only',
  );
  expect((await report('test/wrong', true)).status).toBe('unsupported');
});

const damaged: [string, Record<string, unknown>, string][] = [
  ['params that are no object', { params: '[]' }, 'golden: c: metadata "params" is [], which is not the JSON expected there'],
  ['params that are no JSON', { params: '{' }, 'metadata "params" is {, which'],
  ['a negative tolerance', { tolerance: { atol: -1, rtol: 0 } }, 'metadata "tolerance" is {"atol":-1'],
  ['an input that the file lacks', { inputs: ['z'] }, 'metadata names tensor "z", which the file lacks'],
  ['a grad that is neither', { grads: ['x'] }, 'grads lists "x"; use cotangent_<output> and grad_<input>'],
];
for (const [what, metadata, message] of damaged) {
  test(`${what} makes the case invalid`, async () => {
    await expect(readGoldenCase('c', arraySource(await caseFile(metadata)))).rejects.toThrow(message);
  });
}

test('a file that is no case, or cut short, is invalid', async () => {
  const sink = arraySink();
  await writeSafetensors(sink, [f32('x', [1])]);
  await expect(readGoldenCase('c', arraySource(sink.bytes()))).rejects.toThrow('golden: c: metadata has no "inputs"');
  await expect(readGoldenCase('c', arraySource(new Uint8Array(4)))).rejects.toThrow('golden: c: safetensors: the file has 4 B');
});

test('folders are searched through and down, and each case becomes a test', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'heed-golden-'));
  try {
    await mkdir(join(folder, 'deep'));
    await writeFile(join(folder, 'deep', 'a.safetensors'), await caseFile({}, true));
    await writeFile(join(folder, 'b.safetensors'), await caseFile({ op: 'test/wrong' }));
    await writeFile(join(folder, 'notes.txt'), 'no case');
    expect(await goldenFiles([folder, join(folder, 'b.safetensors')])).toEqual(
      ['b.safetensors', 'deep/a.safetensors', 'b.safetensors'].map((name) => join(folder, name)),
    );
    await expect(goldenFiles([join(folder, 'none')])).rejects.toThrow('there is no file or folder');
    const registered = new Map<string, () => Promise<void>>();
    await goldenTests((name, run) => registered.set(name, run), folder, mapping, { tiers: ['baseline'] });
    expect([...registered.keys()]).toEqual([
      'the golden case b.safetensors passes on tier baseline',
      'the golden case a.safetensors passes on tier baseline',
    ]);
    const [wrong, right] = [...registered.values()];
    await right?.();
    await expect(wrong?.()).rejects.toThrow('y: 1 of 3 values are off');
  } finally {
    await rm(folder, { recursive: true });
  }
});
