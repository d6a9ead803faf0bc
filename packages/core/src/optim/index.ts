export { WeightAverage } from './average.js';
export {
  adamW,
  type AdamWOptions,
  lion,
  type LionOptions,
  Optimizer,
  type OptimizerOptions,
  type ParameterGroup,
  sgd,
  type SgdOptions,
} from './optimizer.js';
export { namedTensors } from './parameters.js';
export {
  constantSchedule,
  cosineSchedule,
  inverseSqrtSchedule,
  linearSchedule,
  type Schedule,
  warmupStableDecaySchedule,
} from './schedules.js';
