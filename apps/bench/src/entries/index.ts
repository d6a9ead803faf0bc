import type { Device } from '@heed/core';
import type { Entry, Family, Request } from '../entry.js';
import { decoding } from './decode.js';
import { dense } from './dense.js';
import { estimators } from './estimators.js';
import { fna2d } from './fna.js';
import { lightning2Family } from './lightning2.js';
import { linear } from './linear.js';
import { maskFamily } from './masks.js';
import { matmulFamily } from './matmul.js';
import { memories } from './memories.js';
import { memoryFamily } from './memory.js';
import { nalaformerFamily } from './nalaformer.js';
import { scans } from './scans.js';
import { states } from './states.js';
import { training } from './training.js';
import { zetaFamily } from './zeta.js';

/** All families; a technique adds its own line. `device` for those whose figures depend on a plan. */
function families(device: Pick<Device, 'capabilities' | 'isSoftware'>): readonly Family[] {
  return [
    memoryFamily,
    training,
    matmulFamily,
    dense,
    decoding,
    states,
    lightning2Family,
    scans,
    linear,
    memories,
    estimators,
    fna2d,
    zetaFamily,
    maskFamily(device),
    nalaformerFamily,
  ];
}

/** The entries of a suite. */
export function entriesOf(device: Pick<Device, 'capabilities' | 'isSoftware'>, request: Request): Entry[] {
  return families(device).flatMap((family) => family(request));
}
