// Pipelines compile beside what is recorded: work that needs one waits, and everything behind it keeps its order.
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { add, type Device, mul, openDevice, scope, type Tensor, tensor, writeValues } from '../src/index.js';
import { defineKernel } from '../src/kernel/define.js';
import { read, write } from '../src/kernel/bindings.js';

/** Holds pipelines back until `finish` is called. */
function slowCompiler(device: Device): { asked: () => number; finish: () => void } {
  const { gpu, compiling } = device;
  compiling.shortText = 0;
  const waiting: (() => void)[] = [];
  let asked = 0;
  const create = gpu.createComputePipelineAsync.bind(gpu);
  Object.defineProperty(gpu, 'createComputePipelineAsync', {
    value: (descriptor: GPUComputePipelineDescriptor) => {
      asked++;
      return new Promise<GPUComputePipeline>((resolve, reject) => {
        waiting.push(() => void create(descriptor).then(resolve, reject));
      });
    },
  });
  return { asked: () => asked, finish: () => waiting.splice(0).forEach((go) => go()) };
}

// One pipeline a value of `shift`.
const shifted = defineKernel({
  name: 'shifted',
  bindings: { x: read('f32'), out: write('f32') },
  uniforms: { factor: 'f32', items: 'u32' },
  wgsl: ({ shift }: { shift: number }) => `
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3u) {
      if (id.x < uniforms.items) { store_out(id.x, load_x(id.x) * uniforms.factor + f32(${shift})); }
    }`,
});

type Step = { op: 'run'; shift: number; factor: number } | { op: 'write'; value: number } | { op: 'double' };

const steps = fc.array(
  fc.oneof(
    fc.record({ op: fc.constant('run' as const), shift: fc.nat(3), factor: fc.integer({ min: -2, max: 2 }) }),
    fc.record({ op: fc.constant('write' as const), value: fc.integer({ min: -9, max: 9 }) }),
    fc.record({ op: fc.constant('double' as const) }),
  ),
  { minLength: 1, maxLength: 12 },
);

/** What the steps leave, buffers being freed and handed out again on the way; the host's own arithmetic beside it. */
function run(device: Device, list: readonly Step[]): { tensor: Tensor; expected: number } {
  let x = tensor(device, new Float32Array(8).fill(1));
  let expected = 1;
  for (const step of list) {
    if (step.op === 'write') {
      writeValues(x, new Float32Array(8).fill(step.value));
      expected = step.value;
      continue;
    }
    const next = step.op === 'double' ? add(x, x) : tensor(device, new Float32Array(8));
    if (step.op === 'run') {
      const { shift, factor } = step;
      shifted.run(device, { spec: { shift }, tensors: { x, out: next }, uniforms: { factor, items: 8 }, grid: [1] });
    }
    expected = step.op === 'double' ? 2 * expected : expected * step.factor + step.shift;
    x.dispose();
    x = next;
  }
  return { tensor: x, expected };
}

test('work that waits for pipelines gives what it gives without waiting', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(steps, { minLength: 1, maxLength: 3 }), fc.boolean(), async (lists, freed) => {
      await using device = await openDevice();
      const compiler = slowCompiler(device);
      const results = lists.map((list) => run(device, list));
      if (freed) device.pool.trim(0);
      const values = results.map(({ tensor: t }) => t.read());
      const finish = setInterval(compiler.finish, 1);
      const got = await Promise.all(values);
      clearInterval(finish);
      results.forEach(({ tensor: t, expected }, i) => {
        expect(Array.from(got[i]!)).toEqual(new Array<number>(8).fill(expected));
        t.dispose();
      });
      expect(device.memory()).toMatchObject({ tensors: 0, liveBytes: 0 });
    }),
    { seed: 11, numRuns: 12 },
  );
});

test('pipelines are asked for at once, not one after the other', async () => {
  await using device = await openDevice();
  const compiler = slowCompiler(device);
  const x = tensor(device, [1, 2, 3, 4]);
  const out = scope(() => mul(add(x, x), 3));
  expect(compiler.asked()).toBe(2);
  expect([...device.pipelines.values()].map(({ compileMs }) => compileMs)).toEqual([undefined, undefined]);
  const values = out.read();
  compiler.finish();
  expect(Array.from(await values)).toEqual([6, 12, 18, 24]);
  for (const { compileMs } of device.pipelines.values()) expect(compileMs).toBeGreaterThan(0);
  [x, out].forEach((t) => t.dispose());
});

test('short texts compile at once, and nothing waits for them', async () => {
  await using device = await openDevice();
  const compiler = slowCompiler(device);
  device.compiling.shortText = 4096;
  const x = tensor(device, [1, 2, 3, 4]);
  const out = add(x, x);
  expect(compiler.asked()).toBe(0);
  expect(Array.from(await out.read())).toEqual([2, 4, 6, 8]);
  [x, out].forEach((t) => t.dispose());
});

test('work without end does not wait without end: pipelines are then made at once', async () => {
  await using device = await openDevice();
  slowCompiler(device); // never finished
  const one = tensor(device, [1, 1, 1, 1]);
  let x = tensor(device, [0, 0, 0, 0]);
  for (let i = 0; i < 10_050; i++) {
    const next = add(x, one);
    x.dispose();
    x = next;
  }
  expect(Array.from(await x.read())).toEqual([10_050, 10_050, 10_050, 10_050]);
  [x, one].forEach((t) => t.dispose());
});
