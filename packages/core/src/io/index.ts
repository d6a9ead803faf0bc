export { arraySink, arraySource, fileSink, fileSource, type ByteSink, type ByteSource } from './bytes.js';
export type { SafetensorsDType, SafetensorsEntry } from './safetensors-header.js';
export {
  decodeValues,
  encodeFloats,
  openSafetensors,
  writeSafetensors,
  type SafetensorsFile,
  type SafetensorsTensor,
  type SafetensorsValues,
} from './safetensors.js';
export { loadParameters, loadTraining, saveParameters, saveTraining, type TrainingProgress } from './checkpoint.js';
