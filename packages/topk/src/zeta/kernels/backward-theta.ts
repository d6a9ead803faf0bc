import type { Device, Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';

/** Parts of a row that workgroups of their own sum up. */
const gammaParts = 64;

// The sums of all dD over 64 parts of each row, in a fixed order.
// tile    one part a workgroup of 256
// bytes   reads 4 a query, writes 4 a part
const gammaRows = defineKernel({
  name: 'zeta-backward-gamma-rows',
  bindings: { work: read('f32'), rowSums: write('f32') },
  uniforms: { rows: 'u32', firstRow: 'u32', tokens: 'u32', length: 'u32', place: 'u32' },
  wgsl: () => `
    var<workgroup> partial: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * ${gammaParts}u) { return; }
      let r = g / ${gammaParts}u;
      let length = (uniforms.tokens + ${gammaParts - 1}u) / ${gammaParts}u;
      let begin = (g % ${gammaParts}u) * length;
      let end = min(begin + length, uniforms.tokens);
      var sum = 0.0;
      for (var t = begin + lane; t < end; t += 256u) { sum += load_work((r * uniforms.tokens + t) * uniforms.length + uniforms.place); }
      partial[lane] = sum;
      for (var step = 128u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (lane < step) { partial[lane] += partial[lane + step]; }
      }
      if (lane == 0u) { store_rowSums(uniforms.firstRow * ${gammaParts}u + g, partial[0]); }
    }`,
});

// dtheta = d(gamma^2) 2 gamma gamma (1 - gamma), summed over the batch; 0 where gamma^2 is held at its floor.
// tile    one head a lane, 64 lanes
// bytes   reads 4 and 4 a part and batch entry, writes 4 a head
const thetaGradient = defineKernel({
  name: 'zeta-backward-theta',
  bindings: { theta: read('f32'), rowSums: read('f32'), dTheta: write('f32') },
  uniforms: { batch: 'u32', heads: 'u32', parts: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let h = workgroupIndex(group, groups) * 64u + lane;
      if (h >= uniforms.heads) { return; }
      var sum = 0.0;
      for (var b = 0u; b < uniforms.batch; b++) {
        for (var part = 0u; part < uniforms.parts; part++) { sum += load_rowSums((b * uniforms.heads + h) * uniforms.parts + part); }
      }
      let g = 1.0 / (1.0 + exp(-clamp(load_theta(h), -30.0, 30.0)));
      store_dTheta(h, select(0.0, sum * 2.0 * g * g * (1.0 - g), g * g > 1e-6));
    }`,
});

/** Room for the sums of all dD, f32 [batch heads, parts]. */
export function gammaSums(device: Device, rows: number): Tensor {
  return empty(device, [rows, gammaParts]);
}

/** Adds up the dD of the rows of a slab into rowSums f32 [batch heads, parts]. */
export function sumGamma(work: Tensor, rowSums: Tensor, at: { rows: number; firstRow: number; tokens: number }, slots: number): void {
  const length = work.dim(2);
  gammaRows.run(work.device, {
    spec: {},
    tensors: { work, rowSums },
    uniforms: { ...at, length, place: 2 * slots + 9 },
    grid: [at.rows * gammaParts],
  });
}

/** dtheta f32 [heads]. */
export function differentiateTheta(theta: Tensor, rowSums: Tensor, dTheta: Tensor): void {
  const heads = theta.size;
  thetaGradient.run(theta.device, {
    spec: {},
    tensors: { theta, rowSums, dTheta },
    uniforms: { batch: rowSums.dim(0) / heads, heads, parts: rowSums.dim(1) },
    grid: [Math.ceil(heads / 64)],
  });
}
