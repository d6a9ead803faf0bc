/** Capability tiers, in ascending order: every kernel has a baseline form, faster forms are added where they pay. */
export const tiers = ['baseline', 'subgroups', 'matrix'] as const;
export type Tier = (typeof tiers)[number];

/** True when tier `a` is at least tier `b`. */
export function tierAtLeast(a: Tier, b: Tier): boolean {
  return tiers.indexOf(a) >= tiers.indexOf(b);
}

/** One shape of subgroup-matrix product: an M x K times K x N tile of `component`, summed in `result`. */
export interface MatrixConfig {
  component: 'f16' | 'f32' | 'i8' | 'u8';
  result: 'f16' | 'f32' | 'i32' | 'u32';
  M: number;
  N: number;
  K: number;
}

/** The limits that kernels plan with; a baseline device has WebGPU's guaranteed values. */
export interface DeviceLimits {
  maxBufferSize: number;
  maxStorageBufferBindingSize: number;
  maxComputeWorkgroupStorageSize: number;
  maxComputeInvocationsPerWorkgroup: number;
  maxComputeWorkgroupSizeX: number;
  maxComputeWorkgroupsPerDimension: number;
  maxStorageBuffersPerShaderStage: number;
  minUniformBufferOffsetAlignment: number;
}

/** What a device can do; plans are pure functions of shapes and this. */
export interface Capabilities {
  tier: Tier;
  /** shader-f16: f16 arithmetic in kernels. Without it f16 tensors are stored as packed pairs. */
  f16: boolean;
  /** Subgroup operations; a subgroup has subgroupMinSize to subgroupMaxSize lanes. */
  subgroups: boolean;
  subgroupMinSize: number;
  subgroupMaxSize: number;
  /** `@subgroup_size(n)` may be stated. */
  subgroupSizeControl: boolean;
  /** `hardware` where the adapter has subgroup matrices, `emulated` on tier matrix without them. */
  matrix: 'hardware' | 'emulated' | 'none';
  matrixConfigs: readonly MatrixConfig[];
  timestamps: boolean;
  limits: DeviceLimits;
}

/** What `openDevice` chose, for people and for benchmark records. */
export interface DeviceReport {
  /** Of the adapter, as far as it tells; so are vendor, architecture and driver. */
  name: string;
  vendor: string;
  architecture: string;
  driver: string;
  /** Where it comes from: Dawn in Node, the browser, or the caller's own GPUDevice. */
  backend: 'node-dawn' | 'browser' | 'given';
  tier: Tier;
  /** A software adapter: right, and slow. */
  software: boolean;
  /** WebGPU features that are on. */
  features: string[];
  /** Dawn toggles that were asked for. */
  toggles: string[];
}

/** Fragment shape that matrix kernels are written for; what the emulation offers and what NVIDIA, AMD and Intel have or cover. */
export const emulatedMatrixConfigs: readonly MatrixConfig[] = [
  { component: 'f16', result: 'f32', M: 16, N: 16, K: 16 },
  { component: 'f16', result: 'f32', M: 16, N: 8, K: 16 },
  { component: 'f16', result: 'f16', M: 16, N: 16, K: 16 },
  { component: 'f16', result: 'f16', M: 16, N: 8, K: 16 },
];
