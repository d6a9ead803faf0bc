import type { Device } from '@heed/core';

/**
 * A synthetic task: `npm run lab -- task <name>` runs it and writes its record.
 *
 * To add one: write `src/tasks/<name>.ts` that exports a `Task` and put it into `src/tasks/registry.ts`; nothing else changes. Its `run`
 * draws everything from `RandomStream(seed, '<task>/<split>')`, so that splits never meet, and gives one `TaskResult` a model, seed and
 * test cell. Of help are
 * - `trainTask` (train.ts): AdamW, cosine schedule, clipping and evaluation between epochs around any loss;
 * - `TaskModel` (model.ts): token embedding with tied head around any mixers, `labelledLoss` and `labelledAccuracy` (labelled.ts) for tasks
 *   whose labels stand at some positions (`LabelledBatch`); a task with continuous inputs brings a loss of its own;
 * - `makeMixer` (../model/mixers.ts): mixers by their registry name.
 */
export interface Task {
  readonly name: string;
  /** One line for the command's help. */
  readonly about: string;
  /** What `--set key=value` may name, each with its default. */
  readonly settings: Readonly<Record<string, number | string>>;
  /** What the papers or the task's definition report for it, by mixer and cell; stands in the record beside what was measured. */
  readonly published: readonly PublishedFigure[];
  /** Whether published figures speak of a run with these settings. Default: always. */
  comparable?(settings: TaskContext['settings']): boolean;
  run(context: TaskContext): Promise<readonly TaskResult[]>;
}

/** A figure from elsewhere. */
export interface PublishedFigure {
  readonly mixer: string;
  readonly cell: string;
  readonly metric: string;
  readonly value: number;
  readonly source: string;
}

/** What a task is run with. */
export interface TaskContext {
  readonly device: Device;
  /** Registry names of the mixers to run. */
  readonly mixers: readonly string[];
  readonly seeds: readonly number[];
  /** The task's settings with what the caller changed. */
  readonly settings: Readonly<Record<string, number | string>>;
  /** One line of progress. */
  report(line: string): void;
}

/** One measured figure: a model, a seed, a test cell. */
export interface TaskResult {
  readonly mixer: string;
  readonly seed: number;
  /** What was tested, such as `pairs 8` or `length 1024`. */
  readonly cell: string;
  /** What `value` is, such as `accuracy` or `squared error`. */
  readonly metric: string;
  readonly value: number;
  /** What the same model would get by guessing, where that is known. */
  readonly chance?: number;
  /** Further figures: parameters, state bytes, seconds, epochs. */
  readonly extra?: Readonly<Record<string, number | string>>;
}

/** A number among the settings. */
export function numberSetting(settings: TaskContext['settings'], name: string): number {
  const value = Number(settings[name]);
  if (!Number.isFinite(value)) throw new RangeError(`task: setting ${name} is "${String(settings[name])}"; give a number`);
  return value;
}
