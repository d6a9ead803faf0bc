// Every public op and the attention engine once on Dawn's null backend, which compiles and validates each text without a
// driver, hardware matrices included; then every generated text is held to the rules that one driver punishes silently.
import { afterAll, describe, expect, test } from 'vitest';
import { createKvCache, type Device, type FloatDType, openDevice, scope, type Tensor, type Tier, tiers, zeros } from '../src/index.js';
import { checkWorkgroupVariables, vjp, workgroupBytes } from '../src/internal.js';
import * as ops from '../src/ops/index.js';
import { adamW, lion, sgd } from '../src/optim/index.js';
import { engine } from './compile-attention-cases.js';
import { opCases, Operands, type Outputs } from './compile-cases.js';

const dtypes: readonly FloatDType[] = ['f32', 'f16'];

/** Public names that are no ops on tensors, or views of others. */
const noKernels = new Set(['tileOrder', 'ropeFrequencies', 'planMatmul']);

/** Runs a case and its gradients, and waits for what the backend says. */
async function compile(device: Device, make: () => { inputs: Tensor[]; run: () => Outputs }): Promise<void> {
  scope(() => {
    const { inputs, run } = make();
    if (inputs.length === 0) {
      run();
      return;
    }
    // a first run tells shapes and dtypes of the cotangents
    const made = run();
    const outputs: readonly Tensor[] = 'device' in made ? [made as Tensor] : made;
    const cotangents = outputs.map((t) => zeros(device, t.shape, { dtype: t.dtype }));
    vjp(run, inputs, cotangents);
  });
  await device.idle();
}

const uninitialised = /var\s+\w+\s*:\s*subgroup_matrix_result\s*<[^;=]*>\s*;/;

/** Rules that no backend checks for us. */
function checkTexts(device: Device): void {
  const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = device.limits;
  expect(device.pipelines.size).toBeGreaterThan(100);
  for (const { name, wgsl } of device.pipelines.values()) {
    checkWorkgroupVariables(name, wgsl);
    expect(workgroupBytes(wgsl), name).toBeLessThanOrEqual(maxComputeWorkgroupStorageSize);
    const lanes = /@workgroup_size\(([\d\s,u]+)\)/
      .exec(wgsl)?.[1]
      ?.split(',')
      .map((n) => Number.parseInt(n, 10));
    expect(lanes?.reduce((a, b) => a * b) ?? Infinity, name).toBeLessThanOrEqual(maxComputeInvocationsPerWorkgroup);
    expect(wgsl, name).not.toMatch(uninitialised);
  }
}

test('the rule for accumulators finds one that is not initialised', () => {
  expect('var acc: subgroup_matrix_result<f32, 8, 16>;').toMatch(uninitialised);
  expect('var acc: subgroup_matrix_result<f32, 8, 16> = subgroup_matrix_result<f32, 8, 16>();').not.toMatch(uninitialised);
});

test('every public op has a case here', () => {
  const names = Object.entries(ops).flatMap(([name, value]) => (typeof value === 'function' && !noKernels.has(name) ? [name] : []));
  expect(names.filter((name) => !(name in opCases))).toEqual([]);
});

const variants: { tier: Tier; software: boolean }[] = [
  ...tiers.map((tier) => ({ tier, software: false })),
  { tier: 'baseline', software: true },
];
for (const { tier, software } of variants) {
  // ops choose shorter texts on software devices
  describe(`on a ${tier} device${software ? ' that is software' : ''}`, () => {
    let device: Device;
    test('a device of the null backend opens', async () => {
      device = await openDevice({ tier, nullBackend: true });
      if (software) Object.defineProperty(device.report, 'software', { value: true });
      expect(device.tier).toBe(tier);
      expect(device.capabilities.matrix).toBe(tier === 'matrix' ? 'hardware' : 'none');
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });
    for (const dtype of dtypes) {
      test(`every op compiles for ${dtype}, forward and backward`, async () => {
        const failed: string[] = [];
        for (const [name, make] of Object.entries(opCases)) {
          await compile(device, () => make(new Operands(device, dtype))).catch((error: Error) =>
            failed.push(`${name}: ${error.message.slice(0, 600)}`),
          );
        }
        expect(failed).toEqual([]);
      });
      test(`attention compiles for ${dtype}, forward and backward`, async () => {
        const failed: string[] = [];
        for (const [name, make] of Object.entries(engine)) {
          for (const [dim, tokens] of [
            [64, 130],
            [36, 9],
            [7, 5],
          ] as const) {
            await compile(device, () => make(new Operands(device, dtype), dim, tokens)).catch((error: Error) =>
              failed.push(`${name} ${dim}: ${error.message.slice(0, 600)}`),
            );
          }
        }
        expect(failed).toEqual([]);
      });
    }
    test('optimisers and caches compile', async () => {
      for (const make of [adamW, sgd, lion]) {
        scope(() => {
          const p = { w: zeros(device, [4, 4]) };
          const optimizer = make(p, { clip: 1 });
          optimizer.step({ w: zeros(device, [4, 4]) }, { learningRate: 1 });
          optimizer.dispose();
        });
      }
      for (const dtype of dtypes) {
        const cache = createKvCache(device, { batch: 1, kvHeads: 2, headDim: 64, capacity: 100, dtype });
        scope(() => {
          cache.append(zeros(device, [1, 70, 2, 64]), zeros(device, [1, 70, 2, 64]));
          cache.attend(zeros(device, [1, 70, 4, 64]));
          cache.attend(zeros(device, [1, 1, 4, 64]));
        });
        cache.dispose();
      }
      await device.idle();
    });
    test('workgroup variables are multiples of 16 bytes, accumulators begin with an explicit zero, limits are kept', () => {
      checkTexts(device);
      const fragments = [...device.pipelines.values()].filter(({ wgsl }) => wgsl.includes('subgroup_matrix_result'));
      expect(fragments.length > 0).toBe(tier === 'matrix');
    });
  });
}
