// Child process: opens Dawn as @heed/core does and prints the adapter it finds as one line of JSON; `null` when there is none.
// A process of its own, since a broken driver may end it, and since Dawn reads the driver's variables once.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { root } from './root.mjs';

const require = createRequire(join(root, 'packages', 'core', 'package.json'));
const { create } = await import(pathToFileURL(require.resolve('webgpu')).href);
const gpu = create(['enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia']);
const adapter = await gpu.requestAdapter();
const device = await adapter?.requestDevice();
const found =
  adapter && device ? { vendor: adapter.info.vendor, device: adapter.info.device, description: adapter.info.description } : null;
console.log(`adapter ${JSON.stringify(found)}`);
device?.destroy();
process.exit(0);
