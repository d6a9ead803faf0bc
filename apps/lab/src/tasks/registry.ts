import { gradientVariance } from './gradient-variance.js';
import { mqar } from './mqar-task.js';
import { memory } from './memory-task.js';
import { passkey } from './passkey-task.js';
import { regression } from './regression-task.js';
import type { Task } from './task.js';

/** The tasks of `npm run lab -- task <name>`; see `Task` for how to add one. */
export const tasks: readonly Task[] = [mqar, gradientVariance, passkey, memory, regression];

/** @throws RangeError when there is no such task */
export function taskNamed(name: string): Task {
  const task = tasks.find((one) => one.name === name);
  if (!task) throw new RangeError(`lab: there is no task "${name}"; there are ${tasks.map((one) => one.name).join(', ')}`);
  return task;
}
