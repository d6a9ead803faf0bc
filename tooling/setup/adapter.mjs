// A WebGPU adapter for this machine: the one it has, or a software one from Debian's packages where there is none at all.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { canInstall, installMesa } from './apt.mjs';
import { root } from './root.mjs';
import { Stop, note } from './steps.mjs';
import { hasGpuDevice, softwareVulkanEnvironment } from './vulkan.mjs';

const OLDEST_MESA = 23;

/** @typedef {{ vendor: string, device: string, description: string }} Adapter */

/** Mesa before 23 is too old for Dawn: lavapipe of Mesa 22 lacks features or computes wrongly. @param {Adapter} adapter */
function isTooOld(adapter) {
  const mesa = /llvmpipe.*Mesa (\d+)\./i.exec(adapter.description);
  return mesa !== null && Number(mesa[1]) < OLDEST_MESA;
}

/** @returns {{ adapter?: Adapter, trouble: string }} */
function probe(/** @type {Record<string, string>} */ environment) {
  const child = spawnSync(process.execPath, [join(root, 'tooling', 'setup', 'probe.mjs')], {
    env: { ...process.env, ...environment },
    encoding: 'utf8',
    timeout: 60_000,
  });
  const line = /^adapter (.*)$/m.exec(child.stdout ?? '');
  /** @type {Adapter | null} */
  const adapter = line ? JSON.parse(line[1] ?? 'null') : null;
  if (adapter && !isTooOld(adapter)) return { adapter, trouble: '' };
  if (adapter) return { trouble: `the software driver here is too old (${adapter.description}); Mesa ${OLDEST_MESA} or newer is needed` };
  // Dawn says on stderr why it refused a driver that it found; a missing loader or driver leaves nothing of use there.
  const refused = /^Warning: (.*(?:Vulkan|D3D|Metal).*)$/m.exec(child.stderr ?? '');
  return { trouble: refused ? `Dawn says: ${refused[1]}` : '' };
}

/** What a person has to install here, and why. @param {string} trouble */
function instructions(trouble) {
  const why = `setup: no WebGPU adapter was found on this machine${trouble ? ` (${trouble})` : ''}. Heed computes through WebGPU, so it needs a Vulkan, Metal or Direct3D 12 driver.`;
  const then = 'Then run the command again.';
  if (process.platform === 'darwin')
    return `${why}\nmacOS has Metal on every Mac since 2012: run this outside of a virtual machine, on macOS 13 or newer. ${then}`;
  if (process.platform === 'win32') return `${why}\nInstall your GPU vendor's current driver (it brings Direct3D 12 and Vulkan). ${then}`;
  if (hasGpuDevice()) {
    return `${why}\nA GPU is present, so nothing was installed. Install its Vulkan driver and the loader:
  NVIDIA         the vendor's driver 535 or newer with its Vulkan part (package nvidia-vulkan-icd on Debian), and libvulkan1
  AMD or Intel   sudo apt-get install mesa-vulkan-drivers libvulkan1
To compute on the CPU all the same, set HEED_SOFTWARE=1 and run as root. ${then}`;
  }
  return `${why}\nInstall the software driver (lavapipe, Mesa ${OLDEST_MESA} or newer) and the Vulkan loader, as root:
  Debian 12      add the suite bookworm-backports of the mirror that /etc/apt/sources.list or sources.list.d names, then
                 apt-get update && apt-get install -t bookworm-backports mesa-vulkan-drivers libvulkan1
  Debian 13, Ubuntu 24.04 or newer
                 apt-get update && apt-get install mesa-vulkan-drivers libvulkan1
  Fedora         dnf install mesa-vulkan-drivers vulkan-loader
  Arch           pacman -S vulkan-swrast vulkan-icd-loader
${then}`;
}

/**
 * Finds or installs an adapter.
 * @returns {Promise<Record<string, string>>} variables that the commands which follow need
 */
export async function ensureAdapter() {
  let environment = softwareVulkanEnvironment();
  let found = probe(environment);
  if (!found.adapter) {
    const wanted = !hasGpuDevice() || process.env.HEED_SOFTWARE === '1';
    if (!wanted || !canInstall()) throw new Stop(instructions(found.trouble));
    note('WebGPU adapter', 'none; a software one comes from the packages of this system');
    await installMesa();
    environment = softwareVulkanEnvironment();
    found = probe(environment);
    if (!found.adapter) throw new Stop(instructions(found.trouble));
  }
  note('WebGPU adapter', found.adapter?.description || found.adapter?.device || 'found');
  return environment;
}
