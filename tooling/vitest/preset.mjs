// What the vitest configurations of all packages share.
import { softwareVulkanEnvironment } from '../setup/vulkan.mjs';

/**
 * Tests run against the TypeScript sources of every workspace package (export condition `@heed/source`), in child processes.
 * A software Vulkan driver is chosen here when the machine has no other, so that plain `vitest run` works.
 * @param {{ name: string }} project
 * @returns {import('vitest/config').ViteUserConfig}
 */
export function preset({ name }) {
  const environment = softwareVulkanEnvironment();
  Object.assign(process.env, environment);
  const conditions = ['@heed/source', 'module', 'node', 'import', 'default'];
  return {
    cacheDir: '.tsbuild/vite',
    resolve: { conditions },
    ssr: { resolve: { conditions } },
    esbuild: { target: 'es2022' },
    // vite looks up `localhost` otherwise, which a bare container may not know
    server: { host: '127.0.0.1' },
    test: {
      name,
      env: environment,
      include: ['test/**/*.test.ts'],
      pool: 'forks',
      maxWorkers: 2,
      testTimeout: 180_000,
      hookTimeout: 120_000,
      teardownTimeout: 10_000,
      passWithNoTests: false,
    },
  };
}
