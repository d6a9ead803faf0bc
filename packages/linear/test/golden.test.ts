import { fileURLToPath } from 'node:url';
import { test } from 'vitest';
import { goldenTests } from '@heed/core/testing';
import mapping from './golden.js';

const folder = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
await goldenTests(test, folder('cases'), mapping);
// options that none of those has: float64 from the equations, gradients by automatic differentiation
await goldenTests(test, folder('option-cases'), mapping, { tiers: ['subgroups'] });
