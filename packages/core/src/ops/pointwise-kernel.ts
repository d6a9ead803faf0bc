import type { Device } from '../device/device.js';
import type { Binding } from '../kernel/bindings.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel, type Kernel } from '../kernel/define.js';
import type { AnyExpr, ExprType, Named } from '../kernel/expr/index.js';
import { hash128, key, toWgsl } from '../kernel/expr/index.js';
import type { UniformType } from '../kernel/uniforms.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Mode, PointwisePlan } from './broadcast.js';

// Fused element-by-element kernels made from expressions: up to 7 tensors in, one or more out.
// tile    4 neighbouring elements of the output a lane, 256 lanes
// bytes   reads each operand once, writes each output once, in vectors of 4 where strides and offsets allow
// limits  8 storage bindings; operands stretch by strides of 0; outputs are contiguous

/** One or more expressions over the same inputs. */
export interface FusedFunction {
  name: string;
  inputs: readonly Named[];
  bodies: readonly AnyExpr[];
}

export interface FusedKernel {
  /** How outputs of `size` elements are computed by a plan; `runListed` takes what it gives. */
  launch(plan: PointwisePlan, size: number): Launch;
  /** Computes `outs`, one a body, contiguous and of the plan's shape, from one operand an input. */
  run(device: Device, plan: PointwisePlan, operands: readonly (Tensor | number)[], outs: readonly Tensor[]): void;
}

/** A kernel with all that it takes but operands, outputs, and the values of operands that are numbers. */
export interface Launch {
  kernel: Made;
  spec: FusedSpec;
  /** Numbers of the operands (0 for now) in front. */
  values: readonly (number | readonly number[])[];
  grid: readonly number[];
}

type FusedSpec = { key: string; form: string; modes: string };
type FusedBindings = Record<string, Binding<FusedSpec>>;
type Made = Kernel<FusedSpec, FusedBindings, Record<string, UniformType>>;

const made: Map<string, FusedKernel> = new Map();

/** The kernel of a function; equal functions share one, however often they are written down. */
export function fusedKernel(fused: FusedFunction): FusedKernel {
  const signature = fused.inputs.map(({ name, type }) => `${name}:${type}`).join();
  const id = `${fused.name}/${hash128(`${signature}/${fused.bodies.map((body) => `${body.type}:${key(body)}`).join()}`)}`;
  let kernel = made.get(id);
  if (!kernel) made.set(id, (kernel = makeKernel(fused, id)));
  return kernel;
}

function makeKernel(fused: FusedFunction, id: string): FusedKernel {
  let flat: Made | undefined;
  let strided: Made | undefined;
  let spec: FusedSpec = { key: id, form: '', modes: '' };
  const launch = (plan: PointwisePlan, size: number): Launch => {
    const { form, modes } = plan;
    if (form !== spec.form || modes !== spec.modes) spec = { key: id, form, modes };
    const items = Math.ceil(size / 4);
    const grid = [Math.ceil(items / 256)];
    const values: (number | readonly number[])[] = fused.inputs.map(() => 0);
    values.push(items);
    if (form === 'flat') return { kernel: (flat ??= define(fused, false)), spec, values, grid };
    values.push(size, plan.shape.length, plan.shape, ...plan.steps, ...plan.strides);
    return { kernel: (strided ??= define(fused, true)), spec, values, grid };
  };
  return {
    launch,
    run(device, plan, operands, outs) {
      const { kernel, spec, values, grid } = launch(plan, outs[0]!.size);
      const tensors = operands.map((operand) => (typeof operand === 'number' ? undefined : operand));
      const own = values.map((value, i) => (typeof operands[i] === 'number' ? operands[i] : value));
      kernel.runListed(device, spec, [...tensors, ...outs], own, grid);
    },
  };
}

/** Values with the one at `i` set; in a copy of `shared` where they are those themselves. */
export function withNumber(values: Launch['values'], shared: Launch['values'], i: number, value: number): Launch['values'] {
  const own = values === shared ? [...shared] : (values as (number | readonly number[])[]);
  own[i] = value;
  return own;
}

/** Operands in the order inputs, outputs; values in the order numbers, items, and for strided forms size, rank, shape, steps, strides. */
function define(fused: FusedFunction, strided: boolean): Made {
  const bindings: FusedBindings = {};
  const uniforms: Record<string, UniformType> = {};
  const { inputs } = fused;
  inputs.forEach(({ type }, i) => {
    bindings[`x${i}`] = read<FusedSpec>('any', {
      width: ({ modes }) => (modes[i] === 'v' ? 4 : 1),
      when: ({ modes }) => modes[i] !== 'n',
    });
    uniforms[`n${i}`] = type === 'bool' ? 'u32' : type;
  });
  fused.bodies.forEach((_, i) => {
    bindings[`y${i}`] = write<FusedSpec>('any', { width: 4 });
  });
  uniforms['items'] = 'u32';
  if (strided) {
    Object.assign(uniforms, { size: 'u32', rank: 'u32', shape: 'u32x8' });
    inputs.forEach((_, i) => (uniforms[`step${i}`] = 'u32'));
    inputs.forEach((_, i) => (uniforms[`strides${i}`] = 'u32x8'));
  }
  return defineKernel<FusedSpec, FusedBindings, Record<string, UniformType>>({
    name: `pointwise-${fused.name}`,
    bindings,
    uniforms,
    wgsl: (spec) => (spec.form === 'flat' ? flatText(fused, spec) : stridedText(fused, spec)),
  });
}

const components = ['x', 'y', 'z', 'w'] as const;

/** `fn value<i>(x0: f32, ...) -> f32`, one a body. */
function functionTexts(fused: FusedFunction): string {
  const declarations = new Set<string>();
  const functions = fused.bodies.map((body, i) => {
    const text = toWgsl(body);
    if (text.declarations !== '') declarations.add(text.declarations);
    const parameters = fused.inputs.map(({ name, type }) => `${name}: ${type}`).join(', ');
    return `fn value${i}(${parameters}) -> ${body.type} {\n${text.statements}\nreturn ${text.result};\n}`;
  });
  return [...declarations, ...functions].join('\n');
}

/** The four values of an input as text, one a component. */
function argument(type: ExprType, i: number, mode: Mode, component: string): string {
  const value = mode === 'n' ? `uniforms.n${i}` : mode === 's' || mode === 'b' ? `v${i}` : `v${i}.${component}`;
  return type === 'bool' ? `bool(${value})` : value;
}

function storeText(fused: FusedFunction, modes: string): string {
  return fused.bodies
    .map((body, b) => {
      const calls = components.map((component) => {
        const call = `value${b}(${fused.inputs.map(({ type }, i) => argument(type, i, modes[i] as Mode, component)).join(', ')})`;
        return body.type === 'bool' ? `u32(${call})` : call;
      });
      return `store_y${b}(i, vec4<${body.type === 'bool' ? 'u32' : body.type}>(${calls.join(', ')}));`;
    })
    .join('\n');
}

const head = `
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = workgroupIndex(group, groups) * 256u + lane;
  if (i >= uniforms.items) { return; }`;

function flatText(fused: FusedFunction, { modes }: FusedSpec): string {
  const loads = fused.inputs.map((_, i) =>
    modes[i] === 'v' ? `let v${i} = load_x${i}(i);` : modes[i] === 's' ? `let v${i} = load_x${i}(0u);` : '',
  );
  return `${functionTexts(fused)}\n${head}\n${loads.join('\n')}\n${storeText(fused, modes)}\n}`;
}

/** Takes an item or element index apart and gives `at<i>`, the place in each operand. */
function placeText(tensors: readonly number[], index: string): string {
  return `
    ${tensors.map((t) => `var at${t} = 0u;`).join(' ')}
    var rest = ${index};
    for (var axis = uniforms.rank; axis > 0u; axis--) {
      let a = (axis - 1u) >> 2u;
      let c = (axis - 1u) & 3u;
      let n = uniforms.shape[a][c];
      let at = rest % n;
      rest /= n;
      ${tensors.map((t) => `at${t} += at * uniforms.strides${t}[a][c];`).join(' ')}
    }`;
}

function stridedText(fused: FusedFunction, { modes, form }: FusedSpec): string {
  const tensors = fused.inputs.map((_, i) => i).filter((i) => modes[i] !== 'n');
  const lines: string[] = [];
  if (form === 'rows') {
    lines.push(placeText(tensors, 'i'));
    for (const t of tensors) {
      const step = `uniforms.step${t}`;
      lines.push(
        modes[t] === 'g'
          ? `let v${t} = vec4(load_x${t}(at${t}), load_x${t}(at${t} + ${step}), load_x${t}(at${t} + 2u * ${step}), load_x${t}(at${t} + 3u * ${step}));`
          : `let v${t} = load_x${t}(at${t});`,
      );
    }
  } else {
    for (const t of tensors) lines.push(`var v${t} = vec4(load_x${t}(0u));`);
    lines.push('for (var k = 0u; k < 4u; k++) {', placeText(tensors, 'min(4u * i + k, uniforms.size - 1u)'));
    for (const t of tensors) lines.push(`v${t}[k] = load_x${t}(at${t});`);
    lines.push('}');
  }
  return `${functionTexts(fused)}\n${head}\n${lines.join('\n')}\n${storeText(fused, modes)}\n}`;
}
