export { type Batch, batchAt, type BatchOptions, batchStarts } from './batches.js';
export {
  type CorpusConfig,
  headDimension,
  type LabConfig,
  type MixerName,
  MIXERS,
  type ModelConfig,
  parseConfig,
  readConfig,
  type TrainingConfig,
} from './config.js';
export { lossPlot, type LossPoint, type TrainingHistory } from './plot.js';
export { loadCorpus, loadHeldOut } from './text/load.js';
