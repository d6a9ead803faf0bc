import { expect, test } from 'vitest';
import { type Device, full, openDevice, rmsNorm, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { adamW } from '../src/optim/index.js';
import { RandomStream } from '../src/random/stream.js';

// More workgroups than a direction of the grid takes fold into the next one.
async function results(device: Device): Promise<number[][]> {
  const [rows, columns, weights] = [40, 333, 21 * 4096 + 5];
  const random = new RandomStream(1);
  const x = tensor(device, random.normal(rows * columns), [rows, columns]);
  const factors = full(device, [columns], 1);
  const { outputs, grads } = vjp(() => rmsNorm(x, factors), [factors], [x]);
  const params = { w: full(device, [weights], 1) };
  const gradient = tensor(device, random.normal(weights));
  const optimizer = adamW(params, { clip: 1 });
  optimizer.step({ w: gradient }, { learningRate: 0.1 });
  const { gradientNorm } = await optimizer.statistics();
  const found = [[...(await (grads[0] as typeof x).read())], [gradientNorm], [...(await params.w.read())]];
  optimizer.dispose();
  for (const t of [x, factors, gradient, params.w, ...outputs, ...grads]) t.dispose();
  expect(device.memory().tensors).toBe(0);
  return found;
}

test('sums of norms and gradients are the same where their workgroups fold', async () => {
  // devices of their own: a buffer that is handed out again would still hold the right sums
  const [wide, narrow] = [await openDevice({ tier: 'baseline' }), await openDevice({ tier: 'baseline' })];
  Object.assign(narrow.limits, { maxComputeWorkgroupsPerDimension: 20 });
  const expected = await results(wide);
  expect(await results(narrow)).toEqual(expected);
  expect(expected[1]?.[0]).toBeCloseTo(Math.sqrt(21 * 4096), -1);
  await wide.close();
  await narrow.close();
});
