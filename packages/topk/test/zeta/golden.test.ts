import { fileURLToPath } from 'node:url';
import { test } from 'vitest';
import { goldenTests } from '@heed/core/testing';
import mapping from '../golden.js';

await goldenTests(test, fileURLToPath(new URL('../cases', import.meta.url)), mapping, { tiers: ['baseline', 'subgroups', 'matrix'] });
