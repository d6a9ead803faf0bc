import type { GoldenMapping } from '@heed/core/testing';
import { nalaformerGolden } from './nalaformer/golden.js';
import { lawcatGolden } from './lawcat/golden.js';
import { basedGolden } from './based/golden.js';
import { lightning2Golden } from './lightning2/golden.js';
import { lightningGolden } from './lightning/golden.js';
import { llaGolden } from './lla/golden.js';
import { nprfGolden } from './nprf/golden.js';
import { titansGolden } from './titans/golden.js';
import { transnormerGolden } from './transnormer/golden.js';
import { transnormerllmGolden } from './transnormerllm/golden.js';

/** Op names of the golden cases to the functions of this package. */
const mapping: GoldenMapping = {
  ...lightningGolden,
  ...lightning2Golden,
  ...llaGolden,
  ...nprfGolden,
  ...lawcatGolden,
  ...titansGolden,
  ...basedGolden,
  ...transnormerGolden,
  ...transnormerllmGolden,
  ...nalaformerGolden,
};
export default mapping;
