// The tests of every package in one run of vitest.
import { defineConfig } from 'vitest/config';
import { softwareVulkanEnvironment } from '../setup/vulkan.mjs';

Object.assign(process.env, softwareVulkanEnvironment());

export default defineConfig({
  server: { host: '127.0.0.1' },
  test: {
    projects: ['packages/*', 'apps/*', 'tooling'],
    maxWorkers: 2,
    allowOnly: false,
  },
});
