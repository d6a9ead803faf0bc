import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import type { FloatDType } from '../../dtype.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type Activation, activationDerivative, activationExpr, expressionFunction } from './activation.js';

// out = activation(z) + addend, or z -> dOut activation'(z): what a differentiated product does apart from its epilogue.
// tile    4 elements a lane, 256 lanes
// bytes   reads z and the second operand, writes one element each
type ActivateSpec = { activation: Activation | 'none'; derivative: boolean; second: boolean };

const activateKernel = defineKernel({
  name: 'activate',
  bindings: {
    z: read<ActivateSpec>('float', { width: 4 }),
    second: read<ActivateSpec>('float', { width: 4, when: (spec) => spec.second }),
    out: write<ActivateSpec>('float', { width: 4 }),
  },
  uniforms: { items: 'u32' },
  wgsl: ({ activation, derivative, second }: ActivateSpec) => `
    ${activation === 'none' ? '' : expressionFunction('activate', derivative ? activationDerivative(activation) : activationExpr(activation))}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let value = ${activation === 'none' ? 'load_z(i)' : 'activate4(load_z(i))'};
      store_out(i, ${second ? `value ${derivative ? '*' : '+'} load_second(i)` : 'value'});
    }`,
});

function run(device: Device, spec: ActivateSpec, z: Tensor, second: Tensor | undefined, dtype: FloatDType): Tensor {
  const [first, other] = [asContiguous(z), second && asContiguous(second)];
  const out = empty(device, z.shape, dtype);
  const items = Math.ceil(z.size / 4);
  activateKernel.run(device, { spec, tensors: { z: first, second: other, out }, uniforms: { items }, grid: [Math.ceil(items / 256)] });
  return out;
}

/** activation(z) + addTo */
export function activate(z: Tensor, activation: Activation, addTo: Tensor | undefined, dtype: FloatDType): Tensor {
  return run(z.device, { activation, derivative: false, second: addTo !== undefined }, z, addTo, dtype);
}

/** dOut activation'(z), in the dtype of dOut */
export function activateBackward(z: Tensor, activation: Activation, dOut: Tensor): Tensor {
  return run(z.device, { activation, derivative: true, second: true }, z, dOut, dOut.dtype as FloatDType);
}

/** x in another float dtype; x itself where it has it. */
export function toFloat(x: Tensor, dtype: FloatDType): Tensor {
  return x.dtype === dtype ? x : run(x.device, { activation: 'none', derivative: false, second: false }, x, undefined, dtype);
}
