import type { Task, TaskContext, TaskResult } from './task.js';

/** What a run of a task leaves behind. */
export interface TaskRecord {
  readonly task: string;
  readonly about: string;
  readonly date: string;
  readonly device: unknown;
  readonly mixers: readonly string[];
  readonly seeds: readonly number[];
  readonly settings: Readonly<Record<string, number | string>>;
  readonly seconds: number;
  readonly results: readonly TaskResult[];
  /** Mean over the seeds, with the published figure beside it where there is one. */
  readonly summary: readonly TaskSummary[];
}

export interface TaskSummary {
  readonly mixer: string;
  readonly cell: string;
  readonly metric: string;
  readonly mean: number;
  readonly least: number;
  readonly most: number;
  readonly seeds: number;
  readonly chance?: number;
  readonly published?: number;
  readonly source?: string;
}

/**
 * Runs a task and makes its record.
 * @throws RangeError for a setting that the task does not have
 */
export async function runTask(
  task: Task,
  options: Omit<TaskContext, 'settings'> & { settings?: TaskContext['settings'] },
): Promise<TaskRecord> {
  for (const name of Object.keys(options.settings ?? {})) {
    if (!(name in task.settings))
      throw new RangeError(`task ${task.name}: there is no setting "${name}"; it has ${Object.keys(task.settings).join(', ')}`);
  }
  const settings = { ...task.settings, ...options.settings };
  const begin = performance.now();
  const results = await task.run({ ...options, settings });
  return {
    task: task.name,
    about: task.about,
    date: new Date().toISOString(),
    device: options.device.report,
    mixers: options.mixers,
    seeds: options.seeds,
    settings,
    seconds: (performance.now() - begin) / 1000,
    results,
    summary: summarise(task.comparable?.(settings) === false ? [] : task.published, results),
  };
}

function summarise(published: Task['published'], results: readonly TaskResult[]): TaskSummary[] {
  const groups = new Map<string, TaskResult[]>();
  for (const result of results) {
    const key = `${result.mixer}|${result.cell}|${result.metric}`;
    groups.set(key, [...(groups.get(key) ?? []), result]);
  }
  return [...groups.values()].map((group) => {
    const [{ mixer, cell, metric, chance }] = group as [TaskResult, ...TaskResult[]];
    const values = group.map(({ value }) => value);
    const known = published.find((one) => one.mixer === mixer && one.cell === cell && one.metric === metric);
    return {
      mixer,
      cell,
      metric,
      mean: values.reduce((sum, value) => sum + value, 0) / values.length,
      least: Math.min(...values),
      most: Math.max(...values),
      seeds: values.length,
      ...(chance !== undefined && { chance }),
      ...(known && { published: known.value, source: known.source }),
    };
  });
}

/** The summary as lines of text. */
export function describeRecord({ task, summary, seconds }: TaskRecord): string {
  const lines = summary.map(({ mixer, cell, metric, mean, least, most, seeds, chance, published }) =>
    [
      mixer.padEnd(18),
      cell.padEnd(14),
      metric.padEnd(14),
      mean.toFixed(4),
      seeds > 1 ? `(${least.toFixed(4)} to ${most.toFixed(4)})` : '',
      published === undefined ? '' : `published ${published}`,
      chance === undefined ? '' : `chance ${chance.toPrecision(2)}`,
    ]
      .filter((part) => part !== '')
      .join('  '),
  );
  return [`${task}, ${seconds.toFixed(1)} s`, ...lines].join('\n');
}
