import { HeedError } from '../errors.js';
import {
  type Capabilities,
  type DeviceLimits,
  type DeviceReport,
  emulatedMatrixConfigs,
  type MatrixConfig,
  type Tier,
  tierAtLeast,
} from './capabilities.js';
import { Device } from './device.js';
import { acquireDawn } from './dawn.js';

export interface DeviceOptions {
  /** The highest tier to use; features and limits are capped to it. Default: the best that the adapter has. */
  tier?: Tier;
  /** `auto` (default) takes real hardware first and a software adapter last; `software` and `hardware` insist. */
  adapter?: 'auto' | 'hardware' | 'software';
  /** A WebGPU entry point of your own; default `navigator.gpu`, or Dawn (npm package `webgpu`) in Node. */
  gpu?: GPU;
  /** Exact timestamps for profiling: turns off Dawn's quantisation of 65.5 us (Node only). Default false. */
  exactTimestamps?: boolean;
  /**
   * Turns off Dawn's bounds checks and API validation (Node only). Default false. Faster on some kernels, and an
   * out-of-bounds access is then undefined behaviour: for measurements only.
   */
  unchecked?: boolean;
  /** Dawn's null backend, which compiles and validates without a driver and computes nothing (Node only). Default false. */
  nullBackend?: boolean;
}

const limitNames = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupsPerDimension',
  'maxStorageBuffersPerShaderStage',
  'minUniformBufferOffsetAlignment',
] as const satisfies readonly (keyof DeviceLimits)[];

interface NewerAdapterInfo {
  subgroupMinSize?: number;
  subgroupMaxSize?: number;
  isFallbackAdapter?: boolean;
  subgroupMatrixConfigs?: Iterable<{ componentType: string; resultComponentType: string; M: number; N: number; K: number }>;
}

/**
 * Opens a WebGPU device: a real GPU first, a software adapter last; `device.report` says which.
 * @throws HeedError NO_ADAPTER when there is none, with what to install on this system
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Device> {
  const dawn = options.gpu || hasNavigatorGpu() ? undefined : await acquireDawn(options);
  const gpu = options.gpu ?? dawn?.gpu ?? navigator.gpu;
  try {
    const adapter = await chooseAdapter(gpu, options);
    return await openOn(adapter, options, dawn ? 'node-dawn' : options.gpu ? 'given' : 'browser', dawn?.toggles ?? [], () =>
      dawn?.release(),
    );
  } catch (error) {
    dawn?.release();
    throw error;
  }
}

/**
 * Opens a device, runs `work` and releases everything, so that the process can end.
 * @returns what `work` resolves to
 */
export async function withDevice<T>(work: (device: Device) => Promise<T> | T, options: DeviceOptions = {}): Promise<T> {
  const device = await openDevice(options);
  try {
    return await work(device);
  } finally {
    await device.close();
  }
}

function hasNavigatorGpu(): boolean {
  return typeof navigator !== 'undefined' && navigator.gpu !== undefined && navigator.gpu !== null;
}

async function chooseAdapter(gpu: GPU, options: DeviceOptions): Promise<GPUAdapter> {
  const choice = options.adapter ?? 'auto';
  const wanted: GPURequestAdapterOptions[] = [];
  if (choice !== 'software') wanted.push({ powerPreference: 'high-performance' });
  if (choice !== 'hardware') wanted.push({ forceFallbackAdapter: true }, {});
  for (const request of wanted) {
    const adapter = await gpu.requestAdapter(request);
    if (!adapter) continue;
    const software = isSoftwareAdapter(adapter);
    if ((choice === 'hardware' && software) || (choice === 'software' && !software)) continue;
    return adapter;
  }
  throw new HeedError(
    'NO_ADAPTER',
    `core: no WebGPU adapter was found${choice === 'auto' ? '' : ` (asked for ${choice})`}; ${adapterHint()}`,
  );
}

function adapterHint(): string {
  if (typeof process === 'undefined' || !process.versions?.node) {
    return 'use a browser with WebGPU (Chrome or Edge 113+, Safari 26+, Firefox 141+) over https or localhost';
  }
  if (process.platform === 'linux') {
    return (
      'install a Vulkan driver: the one of your GPU, or the software one: on Debian 12 `apt-get install -t bookworm-backports mesa-vulkan-drivers` ' +
      '(Mesa 24 or newer), elsewhere the package mesa-vulkan-drivers or vulkan-swrast; in a container set VK_DRIVER_FILES to its icd file'
    );
  }
  if (process.platform === 'darwin') return 'WebGPU in Node needs macOS 13 or newer with a Metal GPU';
  return 'install a current driver of your GPU (Direct3D 12 or Vulkan 1.1)';
}

function isSoftwareAdapter(adapter: GPUAdapter): boolean {
  const info = adapter.info as GPUAdapterInfo & NewerAdapterInfo;
  return (
    info.isFallbackAdapter === true ||
    /llvmpipe|lavapipe|swiftshader|basic render|softpipe/i.test(`${info.description} ${info.device} ${info.architecture}`)
  );
}

async function openOn(
  adapter: GPUAdapter,
  options: DeviceOptions,
  backend: DeviceReport['backend'],
  toggles: string[],
  release: () => void,
): Promise<Device> {
  const info = adapter.info as GPUAdapterInfo & NewerAdapterInfo;
  const wantedTier = options.tier ?? 'matrix';
  const has = (feature: string): boolean => adapter.features.has(feature as GPUFeatureName);
  const subgroups = tierAtLeast(wantedTier, 'subgroups') && has('subgroups');
  const f16 = tierAtLeast(wantedTier, 'subgroups') && has('shader-f16');
  const hardwareMatrix = wantedTier === 'matrix' && subgroups && f16 && has('chromium-experimental-subgroup-matrix');
  const configs = hardwareMatrix ? readConfigs(info) : [];
  // on the null backend the list is empty; kernels are then compiled for the shapes of the emulation
  const matrixConfigs = hardwareMatrix && configs.length === 0 ? emulatedMatrixConfigs : configs;
  const emulate = wantedTier === 'matrix' && options.tier === 'matrix' && !hardwareMatrix;
  const tier: Tier = hardwareMatrix || emulate ? 'matrix' : subgroups && wantedTier !== 'baseline' ? 'subgroups' : 'baseline';
  const timestamps = tier !== 'baseline' && has('timestamp-query');
  const features: string[] = [];
  if (subgroups) features.push('subgroups');
  if (subgroups && has('subgroup-size-control')) features.push('subgroup-size-control');
  if (f16) features.push('shader-f16');
  if (timestamps) features.push('timestamp-query');
  if (hardwareMatrix) features.push('chromium-experimental-subgroup-matrix');
  const descriptor: GPUDeviceDescriptor = { label: 'heed', requiredFeatures: features as GPUFeatureName[] };
  if (wantedTier !== 'baseline') {
    const required: Record<string, number> = {};
    for (const name of limitNames) required[name] = adapter.limits[name];
    descriptor.requiredLimits = required;
  }
  const gpu = await adapter.requestDevice(descriptor);
  const limits = Object.fromEntries(limitNames.map((name) => [name, gpu.limits[name]])) as unknown as DeviceLimits;
  const capabilities: Capabilities = {
    tier,
    f16,
    subgroups,
    subgroupMinSize: subgroups ? (info.subgroupMinSize ?? 4) : 1,
    subgroupMaxSize: subgroups ? (info.subgroupMaxSize ?? 128) : 1,
    subgroupSizeControl: features.includes('subgroup-size-control'),
    matrix: hardwareMatrix ? 'hardware' : emulate ? 'emulated' : 'none',
    matrixConfigs: emulate ? emulatedMatrixConfigs : matrixConfigs,
    timestamps,
    limits,
  };
  const report: DeviceReport = {
    name: info.device || info.description || info.architecture || info.vendor || 'unnamed adapter',
    vendor: info.vendor,
    architecture: info.architecture,
    driver: info.description,
    backend,
    tier,
    software: isSoftwareAdapter(adapter),
    features,
    toggles,
  };
  return new Device(gpu, capabilities, report, release);
}

function readConfigs(info: NewerAdapterInfo): MatrixConfig[] {
  const configs: MatrixConfig[] = [];
  for (const c of info.subgroupMatrixConfigs ?? []) {
    configs.push({
      component: c.componentType as MatrixConfig['component'],
      result: c.resultComponentType as MatrixConfig['result'],
      M: c.M,
      N: c.N,
      K: c.K,
    });
  }
  return configs;
}
