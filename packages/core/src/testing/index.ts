export { elements, f64, f64Like, indexOf, randomArray, toFloat32, type F64Array, type NormalSource } from '../float64.js';
export { baselineCapabilities, h100Capabilities } from './capabilities.js';
export {
  compare,
  expectClose,
  expectErrorRatio,
  shareText,
  worstShare,
  type CompareRule,
  type Comparison,
  type Tolerance,
  type Values,
} from './compare.js';
export { hasGradients, readGoldenCase, type GoldenCase, type GoldenTensor } from './golden-case.js';
export {
  forwardAndGradients,
  goldenLine,
  goldenTensor,
  runGoldenCase,
  type GoldenInputs,
  type GoldenMapping,
  type GoldenOp,
  type GoldenReport,
  type GoldenResults,
} from './golden.js';
export { goldenFiles, goldenTests, loadGoldenCase, type RegisterTest } from './golden-files.js';
