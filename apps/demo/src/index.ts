export type { DemoOptions } from './options.js';
export {
  bitsByPosition,
  type DemoRecord,
  type DeviceRecord,
  type LengthPoint,
  type ModelRecord,
  type PositionPoint,
  type TextRecord,
} from './record.js';
export { renderReport } from './report.js';
export { type ModelHost, type ModelSource, type ReadingTask, runDemo, type StageProgress, type Streams } from './session.js';
