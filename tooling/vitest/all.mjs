// The tests of every package in one run of vitest.
import { defineConfig } from 'vitest/config';
import { softwareVulkanEnvironment } from '../setup/vulkan.mjs';

Object.assign(process.env, softwareVulkanEnvironment());

export default defineConfig({
  test: {
    projects: ['packages/*', 'apps/*', 'tooling'],
    maxWorkers: 2,
    allowOnly: false,
  },
});
