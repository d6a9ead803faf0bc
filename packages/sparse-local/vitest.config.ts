import { defineConfig } from 'vitest/config';
import { preset } from '../../tooling/vitest/preset.mjs';

export default defineConfig(preset({ name: 'sparse-local' }));
