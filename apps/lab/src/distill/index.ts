export { type ConversionOptions, type Converted, convertToLawcat, studentConfig } from './convert.js';
export { type BranchParams, type StageContext, type StageOptions, teacherLayers, transferAttention } from './transfer.js';
export { type ConversionRun, type ConversionSummary, convertFile } from './command.js';
