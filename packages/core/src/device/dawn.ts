import { HeedError } from '../errors.js';

interface DawnModule {
  create(flags: string[]): GPU;
  globals: Record<string, unknown>;
}

interface Instance {
  gpu: GPU;
  users: number;
  toggles: string[];
}

// The object that `create` returns must stay referenced while a device lives: collected, it takes the process down with it.
// One instance a set of flags, held here and released with its last device.
const instances: Map<string, Instance> = new Map();

/** Opens (or shares) a Dawn instance in Node. `release` must be called once. */
export async function acquireDawn(options: {
  exactTimestamps?: boolean;
  unchecked?: boolean;
  nullBackend?: boolean;
}): Promise<{ gpu: GPU; toggles: string[]; release: () => void }> {
  const enabled = ['allow_unsafe_apis', 'vulkan_enable_f16_on_nvidia'];
  if (options.unchecked) enabled.push('skip_validation', 'disable_robustness', 'use_vulkan_memory_model');
  const flags = [`enable-dawn-features=${enabled.join(',')}`];
  if (options.exactTimestamps) flags.push('disable-dawn-features=timestamp_quantization');
  if (options.nullBackend) flags.push('backend=null');
  const key = flags.join(' ');
  let instance = instances.get(key);
  if (!instance) {
    const dawn = await importDawn();
    for (const [name, value] of Object.entries(dawn.globals)) {
      if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true, enumerable: false });
    }
    instance = { gpu: dawn.create(flags), users: 0, toggles: flags };
    instances.set(key, instance);
  }
  const held = instance;
  held.users++;
  let released = false;
  return {
    gpu: held.gpu,
    toggles: held.toggles,
    release: () => {
      if (released) return;
      released = true;
      held.users--;
      if (held.users === 0) instances.delete(key);
    },
  };
}

async function importDawn(): Promise<DawnModule> {
  const name = 'webgpu'; // a variable, so that bundlers for browsers do not follow it
  try {
    return (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)) as DawnModule;
  } catch (cause) {
    throw new HeedError(
      'NO_ADAPTER',
      'core: there is no navigator.gpu here and the npm package `webgpu` (Dawn) could not be loaded; in Node run `npm i @heed/core webgpu`, in a browser use one with WebGPU',
      { cause },
    );
  }
}
