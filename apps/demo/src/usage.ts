import { HeedError } from '@heed/core';

/** Something that the person at the command line can put right: one plain sentence, exit status 2. */
export class UsageError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'UsageError';
  }
}

/** Exit status of a run: 0 done, 1 a fault of ours or of the device, 2 something to be put right by the caller. */
export type ExitStatus = 0 | 1 | 2;

/** How a failed run ends. */
export interface Failure {
  readonly status: ExitStatus;
  readonly message: string;
}

/** The sentence and exit status of an error; one that nobody foresaw keeps its stack. */
export function failureOf(error: unknown): Failure {
  if (error instanceof UsageError) return { status: 2, message: `demo: ${error.message}` };
  if (error instanceof HeedError) {
    if (error.code === 'OUT_OF_MEMORY' || error.code === 'LIMIT_EXCEEDED') {
      return { status: 2, message: `demo: the device cannot hold that many tokens; pass a smaller --tokens (${error.message})` };
    }
    if (error.code === 'NO_ADAPTER') return { status: 2, message: error.message };
    return { status: 1, message: error.message };
  }
  return { status: 1, message: error instanceof Error ? (error.stack ?? error.message) : String(error) };
}
