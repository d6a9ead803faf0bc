// Which Vulkan drivers (ICDs) this machine has, and the environment that a child process needs to use the software one.
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ICD_FOLDERS = ['/usr/share/vulkan/icd.d', '/etc/vulkan/icd.d', '/usr/local/share/vulkan/icd.d'];

/** Driver manifests that need no GPU: lavapipe (Mesa) under both of its file names. */
const isSoftware = (/** @type {string} */ path) => /\/lvp_icd[^/]*\.json$/.test(path);

/**
 * A render node or an NVIDIA device file: this machine has a GPU that a hardware driver can open.
 * Mesa installs manifests for Intel, AMD and others on every machine, so manifests alone say nothing.
 */
export function hasGpuDevice() {
  if (existsSync('/dev/nvidiactl') || existsSync('/dev/dxg')) return true;
  return existsSync('/dev/dri') && readdirSync('/dev/dri').some((name) => name.startsWith('renderD'));
}

/** The manifest of the software driver, or undefined. */
export function softwareIcd() {
  for (const folder of ICD_FOLDERS) {
    if (!existsSync(folder)) continue;
    const found = readdirSync(folder)
      .map((name) => join(folder, name))
      .find(isSoftware);
    if (found) return found;
  }
  return undefined;
}

/**
 * Variables for a child process on a machine without a GPU; empty where a GPU, a choice of the user's own or another system is found.
 * @returns {Record<string, string>}
 */
export function softwareVulkanEnvironment() {
  if (process.platform !== 'linux' || process.env.VK_DRIVER_FILES || process.env.VK_ICD_FILENAMES || hasGpuDevice()) return {};
  const icd = softwareIcd();
  if (!icd) return {};
  /** @type {Record<string, string>} */
  const environment = { VK_DRIVER_FILES: icd };
  if (!process.env.XDG_RUNTIME_DIR) {
    const folder = join(tmpdir(), `heed-runtime-${process.getuid?.() ?? 0}`);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    environment.XDG_RUNTIME_DIR = folder;
  }
  return environment;
}
