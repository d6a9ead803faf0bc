import type { ViteUserConfig } from 'vitest/config';

/** The vitest configuration that every package shares; `name` labels its results. */
export function preset(project: { name: string }): ViteUserConfig;
