import type { Capabilities } from '../device/capabilities.js';

// Plans are pure functions of shapes and capabilities: these stand for devices that the machine of a test does not have.

/** What a `baseline` device can do: WebGPU's guaranteed limits, no optional feature. */
export const baselineCapabilities: Capabilities = {
  tier: 'baseline',
  f16: false,
  subgroups: false,
  subgroupMinSize: 1,
  subgroupMaxSize: 1,
  subgroupSizeControl: false,
  matrix: 'none',
  matrixConfigs: [],
  timestamps: false,
  limits: {
    maxBufferSize: 2 ** 28,
    maxStorageBufferBindingSize: 2 ** 27,
    maxComputeWorkgroupStorageSize: 16_384,
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupSizeX: 256,
    maxComputeWorkgroupsPerDimension: 65_535,
    maxStorageBuffersPerShaderStage: 8,
    minUniformBufferOffsetAlignment: 256,
  },
};

/** What an H100 can do through Dawn, on tier `matrix`. */
export const h100Capabilities: Capabilities = {
  tier: 'matrix',
  f16: true,
  subgroups: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  subgroupSizeControl: true,
  matrix: 'hardware',
  matrixConfigs: [
    { component: 'f16', result: 'f32', M: 16, N: 16, K: 16 },
    { component: 'f16', result: 'f32', M: 16, N: 8, K: 16 },
  ],
  timestamps: true,
  limits: {
    maxBufferSize: 2 ** 31,
    maxStorageBufferBindingSize: 2 ** 31,
    maxComputeWorkgroupStorageSize: 49_152,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxComputeWorkgroupsPerDimension: 65_535,
    maxStorageBuffersPerShaderStage: 16,
    minUniformBufferOffsetAlignment: 256,
  },
};
