import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice } from '../src/index.js';
import { defineKernel, empty, write } from '../src/internal.js';
import { philoxWgsl } from '../src/random/philox.js';
import { drawWords, RandomStream } from '../src/random/stream.js';

const draws = defineKernel({
  name: 'test-philox',
  bindings: { words: write('u32'), flat: write('f32'), bell: write('f32') },
  uniforms: { keyLow: 'u32', keyHigh: 'u32', step: 'u32', op: 'u32', blocks: 'u32' },
  wgsl: () => `${philoxWgsl}
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3u) {
      if (id.x >= uniforms.blocks) { return; }
      let words = philox4x32(vec4u(id.x, 0u, uniforms.step, uniforms.op), vec2u(uniforms.keyLow, uniforms.keyHigh));
      let numbers = philoxUniform4(words);
      let normals = philoxNormal4(words);
      for (var lane = 0u; lane < 4u; lane++) {
        store_words(4u * id.x + lane, words[lane]);
        store_flat(4u * id.x + lane, numbers[lane]);
        store_bell(4u * id.x + lane, normals[lane]);
      }
    }`,
});

describe.each(['baseline', 'subgroups'] as const)('random numbers on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('words and uniform numbers are bit-equal to the host, normal ones to f32 accuracy', async () => {
    const blocks = 257;
    const position = { step: 7, op: 3 };
    const stream = new RandomStream(2 ** 40 + 5, 'dropout', position);
    const [words, uniform, normal] = [empty(device, [4 * blocks], 'u32'), empty(device, [4 * blocks]), empty(device, [4 * blocks])];
    const draw = stream.at(position).take();
    draws.run(device, {
      spec: {},
      tensors: { words, flat: uniform, bell: normal },
      uniforms: { keyLow: draw.key[0], keyHigh: draw.key[1], step: draw.step, op: draw.op, blocks },
      grid: [Math.ceil(blocks / 64)],
    });
    const expected = Array.from({ length: blocks }, (_, block) => drawWords(draw, block)).flat();
    expect([...(await words.read())]).toEqual(expected);
    expect(await uniform.read()).toEqual(stream.at(position).uniform(4 * blocks));
    const host = stream.at(position).normal(4 * blocks);
    const got = await normal.read();
    const worst = host.reduce((error, x, i) => Math.max(error, Math.abs(x - (got[i] as number))), 0);
    expect(worst).toBeLessThan(1e-4);
    for (const t of [words, uniform, normal]) t.dispose();
  });
});
