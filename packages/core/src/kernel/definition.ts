import type { Capabilities, Tier } from '../device/capabilities.js';
import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import type { Binding, Operand, Spec } from './bindings.js';
import type { WantedGrid } from './grid.js';
import type { WgslModule } from './modules.js';
import type { UniformType, UniformValue } from './uniforms.js';

export type Bindings<S extends Spec> = Readonly<Record<string, Binding<S>>>;
export type Uniforms = Readonly<Record<string, UniformType>>;

/** What a kernel's text may depend on besides its spec: the dtypes of its operands and the device's capabilities. */
export interface KernelContext {
  capabilities: Capabilities;
  dtypes: Readonly<Record<string, DType>>;
}

/** A kernel: a function from specialisation values to WGSL, with typed bindings and run-time values. */
export interface KernelDefinition<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  /** A noun for what it computes: `softmax-rows`. */
  name: string;
  /** At most 8 storage bindings on `baseline`. They are bound in this order, from binding 1. */
  bindings: B;
  /** Run-time values: lengths, strides, batch. In WGSL `uniforms.<name>`. */
  uniforms: U;
  /** Shared WGSL that the text uses. */
  modules?: readonly WgslModule[] | ((spec: S) => readonly WgslModule[]);
  /** The text: workgroup variables, functions, and `@compute ... fn main`. */
  wgsl: (spec: S, context: KernelContext) => string;
  /** The tier that this form needs; a function of the spec where forms share a definition. Default `baseline`. */
  tier?: Tier | ((spec: S) => Tier);
  /** The tiers that this computation has forms for, this one included. Default: only `tier`. */
  forms?: readonly Tier[];
}

export interface RunOptions<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  spec: S;
  tensors: { readonly [K in keyof B]?: Operand | undefined };
  uniforms: { readonly [K in keyof U]: UniformValue<U[K]> };
  /**
   * Workgroups. `[n]` alone folds over 65,535 into y: such kernels compute their index by `workgroupIndex(group, groups)`.
   * Or the place of three u32 in a buffer that an earlier dispatch wrote.
   */
  grid: WantedGrid;
}

/** One operand a declared binding, in their order; undefined where the spec leaves a binding out. */
export type Operands = readonly (Operand | undefined)[];
/** One value a declared uniform, in their order. */
export type UniformValues = readonly (number | readonly number[] | undefined)[];

export interface Kernel<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  readonly name: string;
  /** Records one dispatch. */
  run(device: Device, options: RunOptions<S, B, U>): void;
  /**
   * As `run`, of lists in the order of the declarations: for what runs once a small op. Specs and lists of values are not changed
   * afterwards. False where the grid is empty and nothing was recorded.
   */
  runListed(device: Device, spec: S, operands: Operands, values: UniformValues, grid: WantedGrid): boolean;
}
