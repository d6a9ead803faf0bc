export { labelledAccuracy, type LabelledBatch, labelledLoss, type LabelledModel } from './labelled.js';
export { TaskModel, type TaskModelOptions, type TaskModelParams } from './model.js';
export { describeRecord, runTask, type TaskRecord, type TaskSummary } from './record.js';
export { taskNamed, tasks } from './registry.js';
export { numberSetting, type PublishedFigure, type Task, type TaskContext, type TaskResult } from './task.js';
export { countParameters, disposeParameters, type TaskTraining, trainTask } from './train.js';
