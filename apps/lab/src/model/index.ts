export {
  BYTES,
  disposeState,
  LanguageModel,
  type LanguageModelOptions,
  type LanguageModelParams,
  type ModelState,
  stateBytes,
} from './language-model.js';
export { buildModel } from './mixers.js';
export { Reader, sample, tokenBits } from './reading.js';
export { loadModel, type LoadedModel } from './shipped.js';
