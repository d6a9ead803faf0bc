import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Tensor } from '../src/index.js';
import { type Device, openDevice, tensor, zeros } from '../src/index.js';
import { defineKernel, Fragments, read, write } from '../src/internal.js';

// One 32 x 16 tile: two fragments below each other, K in two steps, operands once from storage and once from workgroup memory.
const tile = defineKernel({
  name: 'fragment-tile',
  bindings: { a: read('f16', { raw: 'f16' }), b: read('f16', { raw: 'f16' }), out: write('f32', { raw: 'f32' }) },
  uniforms: { depth: 'u32' },
  tier: 'matrix',
  wgsl: (_: { columnB: boolean }, { capabilities }) => {
    const f = new Fragments(capabilities, { N: 8 });
    const { columnB } = _;
    const body = `
      for (var i = lane; i < 512u; i += 64u) { staged[i] = b[base_b() + i]; }
      workgroupBarrier();
      let first = subgroup * 16u;
      ${f.zero('left')} ${f.zero('right')}
      for (var k0 = 0u; k0 < uniforms.depth; k0 += 16u) {
        ${f.loadLeft('x', 'a', 'base_a() + first * uniforms.depth + k0', 'uniforms.depth')}
        ${f.loadRight('y0', 'staged', columnB ? 'k0' : 'k0 * 16u', columnB ? 'uniforms.depth' : '16u', columnB ? 'column' : 'row')}
        ${f.loadRight('y1', 'staged', columnB ? '8u * uniforms.depth + k0' : 'k0 * 16u + 8u', columnB ? 'uniforms.depth' : '16u', columnB ? 'column' : 'row')}
        ${f.multiplyAdd('left', 'x', 'y0')} ${f.multiplyAdd('right', 'x', 'y1')}
      }
      ${f.scale('left', '2.0')}
      ${f.store('left', 'results', 'first * 16u', '16u')} ${f.store('right', 'results', 'first * 16u + 8u', '16u')}
      workgroupBarrier();
      ${f.loadResult('right', 'results', 'first * 16u', '16u')}
      ${f.store('right', 'out', 'base_out() + first * 16u', '16u')}
      ${f.exchange('other', 'f32(subgroupLane)', 16)}
      if (subgroupLane == 3u) { out[base_out() + first * 16u + 8u] = other; }`;
    return `
      var<workgroup> staged: array<f16, 512>;
      var<workgroup> results: array<f32, 512>;
      ${f.entry(2, body)}`;
  },
});

function run(device: Device, columnB: boolean, a: Tensor, b: Tensor): Tensor {
  const out = zeros(device, [32, 16]);
  tile.run(device, { spec: { columnB }, tensors: { a, b, out }, uniforms: { depth: 32 }, grid: [1] });
  return out;
}

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'matrix' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test.each([false, true])('a tile of fragments is the product (right operand by columns: %s)', async (columnB) => {
  const A = Array.from({ length: 32 * 32 }, (_, i) => ((i * 7) % 13) - 6);
  const B = Array.from({ length: 32 * 16 }, (_, i) => ((i * 5) % 11) - 5);
  using a = tensor(device, A, [32, 32], { dtype: 'f16' });
  const stored = columnB ? Array.from({ length: 512 }, (_, i) => B[(i % 32) * 16 + Math.floor(i / 32)] ?? 0) : B;
  using b = tensor(device, stored, [512], { dtype: 'f16' });
  using out = run(device, columnB, a, b);
  const got = await out.read();
  for (let row = 0; row < 32; row++) {
    for (let column = 0; column < 8; column++) {
      let sum = 0;
      for (let k = 0; k < 32; k++) sum += (A[row * 32 + k] ?? 0) * (B[k * 16 + column] ?? 0);
      expect(got[row * 16 + column]).toBe(2 * sum);
    }
  }
  expect([got[8], got[16 * 16 + 8]]).toEqual([19, 19]);
});

test('the hardware text of the same kernel compiles on the null backend', async () => {
  const nothing = await openDevice({ nullBackend: true, tier: 'matrix' });
  expect(nothing.capabilities.matrix).toBe('hardware');
  const a = zeros(nothing, [32, 32], { dtype: 'f16' });
  const b = zeros(nothing, [512], { dtype: 'f16' });
  for (const columnB of [false, true]) run(nothing, columnB, a, b).dispose();
  await nothing.idle();
  const text = [...nothing.pipelines.values()].find((p) => p.name === 'fragment-tile')?.wgsl ?? '';
  expect(text).toContain('subgroupMatrixMultiplyAccumulate');
  expect(text).toContain('@subgroup_size(32)');
  a.dispose();
  b.dispose();
  await nothing.close();
});

// The same tile through arrays of vec4u: offsets and strides count elements of 8 halves or 4 floats.
const packedTile = defineKernel({
  name: 'fragment-tile-packed',
  bindings: { a: read('f16', { raw: 'vec4u' }), b: read('f16', { raw: 'vec4u' }), out: write('f32', { raw: 'vec4f' }) },
  uniforms: { depth: 'u32' },
  tier: 'matrix',
  wgsl: (_: { columnB: boolean }, { capabilities }) => {
    const f = new Fragments(capabilities, { N: 8, packed: ['left', 'right', 'results'] });
    const [stride, layout] = _.columnB ? ['uniforms.depth / 8u', 'column' as const] : ['2u', 'row' as const];
    const at = (j: number): string => (_.columnB ? `${8 * j}u * uniforms.depth / 8u + k0 / 8u` : `k0 * 2u + ${j}u`);
    const body = `
      for (var i = lane; i < 128u; i += 64u) { left[i] = a[base_a() + i]; }
      right[lane] = b[base_b() + lane];
      workgroupBarrier();
      let first = subgroup * 16u;
      ${f.zero('c0')} ${f.zero('c1')}
      for (var k0 = 0u; k0 < uniforms.depth; k0 += 16u) {
        ${f.loadLeft('x', 'left', '(first * uniforms.depth + k0) / 8u', 'uniforms.depth / 8u')}
        ${f.loadRight('y0', 'right', at(0), stride, layout)}
        ${f.loadRight('y1', 'right', at(1), stride, layout)}
        ${f.multiplyAdd('c0', 'x', 'y0')} ${f.multiplyAdd('c1', 'x', 'y1')}
      }
      ${f.store('c0', 'results', 'first * 4u', '4u')} ${f.store('c1', 'results', 'first * 4u + 2u', '4u')}
      workgroupBarrier();
      ${f.loadResult('c1', 'results', 'first * 4u', '4u')}
      workgroupBarrier();
      ${f.store('c1', 'results', 'first * 4u + 2u', '4u')}
      workgroupBarrier();
      for (var i = lane; i < 128u; i += 64u) { out[base_out() + i] = bitcast<vec4f>(results[i]); }`;
    return `
      var<workgroup> left: array<vec4u, 128>;
      var<workgroup> right: array<vec4u, 64>;
      var<workgroup> results: array<vec4u, 128>;
      ${f.entry(2, body, { lanesInOrder: true })}`;
  },
});

test.each([false, true])('arrays of vec4u hold operands and results alike (right operand by columns: %s)', async (columnB) => {
  const A = Array.from({ length: 32 * 32 }, (_, i) => ((i * 7) % 13) - 6);
  const B = Array.from({ length: 32 * 16 }, (_, i) => ((i * 5) % 11) - 5);
  const stored = columnB ? Array.from({ length: 512 }, (_, i) => B[(i % 32) * 16 + Math.floor(i / 32)] ?? 0) : B;
  for (const options of [{ tier: 'matrix' }, { nullBackend: true, tier: 'matrix' }] as const) {
    const real = !('nullBackend' in options);
    const on = real ? device : await openDevice(options);
    const a = tensor(on, A, [32, 32], { dtype: 'f16' });
    const b = tensor(on, stored, [512], { dtype: 'f16' });
    const out = zeros(on, [32, 16]);
    packedTile.run(on, { spec: { columnB }, tensors: { a, b, out }, uniforms: { depth: 32 }, grid: [1] });
    const got = await out.read();
    for (let row = 0; row < (real ? 32 : 0); row++) {
      for (let column = 0; column < 16; column++) {
        let sum = 0; // the right half is the left one again
        for (let k = 0; k < 32; k++) sum += (A[row * 32 + k] ?? 0) * (B[k * 16 + (column % 8)] ?? 0);
        expect(got[row * 16 + column]).toBe(sum);
      }
    }
    for (const t of [a, b, out]) t.dispose();
    if (!real) await on.close();
  }
});

const halfTile = defineKernel({
  name: 'fragment-tile-half',
  bindings: { a: read('f16', { raw: 'vec4u' }), b: read('f16', { raw: 'vec4u' }), out: write('f16', { raw: 'vec4u' }) },
  uniforms: {},
  tier: 'matrix',
  wgsl: (_: { N: 8 | 16 }, { capabilities }) => {
    const f = new Fragments(capabilities, { N: _.N, packed: ['left', 'right', 'sums'] });
    const total = f.hardware ? 'total' : 'total[0]';
    const body = `
      left[lane] = a[base_a() + lane];
      right[lane] = b[base_b() + lane];
      sums[lane] = vec4u();
      workgroupBarrier();
      ${f.loadLeft('x', 'left', '0u', '2u')}
      ${f.loadRight('y', 'right', '0u', '2u')}
      ${f.zeroHalf('total')}
      ${f.multiplyAdd(total, 'x', 'y')}
      ${f.clearHalf(total)}
      ${f.multiplyAdd(total, 'x', 'y')} ${f.multiplyAdd(total, 'x', 'y')}
      ${f.storeHalf(total, 'sums', '0u', '2u')}
      workgroupBarrier();
      out[base_out() + lane] = sums[lane];`;
    return `
      var<workgroup> left: array<vec4u, 32>;
      var<workgroup> right: array<vec4u, 32>;
      var<workgroup> sums: array<vec4u, 32>;
      ${f.entry(1, body, { lanesInOrder: true })}`;
  },
});

test.each([8, 16] as const)('sums in halves are stored as operands are, fragments of %i columns', async (N) => {
  const A = Array.from({ length: 256 }, (_, i) => ((i * 7) % 13) - 6);
  const B = Array.from({ length: 256 }, (_, i) => ((i * 5) % 11) - 5);
  for (const options of [{ tier: 'matrix' }, { nullBackend: true, tier: 'matrix' }] as const) {
    const real = !('nullBackend' in options);
    const on = real ? device : await openDevice(options);
    const [a, b] = [tensor(on, A, [16, 16], { dtype: 'f16' }), tensor(on, B, [16, 16], { dtype: 'f16' })];
    const out = zeros(on, [16, 16], { dtype: 'f16' });
    halfTile.run(on, { spec: { N }, tensors: { a, b, out }, uniforms: {}, grid: [1] });
    const got = await out.read();
    for (let i = 0; i < (real ? 256 : 0); i++) {
      let sum = 0;
      for (let k = 0; k < 16; k++) sum += (A[Math.floor(i / 16) * 16 + k] ?? 0) * (B[k * 16 + (i % 16)] ?? 0);
      expect(got[i]).toBe(i % 16 < N ? 2 * sum : 0);
    }
    for (const x of [a, b, out]) x.dispose();
    if (!real) await on.close();
  }
});
