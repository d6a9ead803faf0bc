/** What went wrong, as a word that programs can branch on. */
export type HeedErrorCode =
  | 'NO_ADAPTER'
  | 'DEVICE_LOST'
  | 'OUT_OF_MEMORY'
  | 'LIMIT_EXCEEDED'
  | 'SHAPE_MISMATCH'
  | 'DTYPE_MISMATCH'
  | 'UNSUPPORTED'
  | 'INVALID_ARGUMENT'
  | 'INVALID_FILE'
  | 'DISPOSED'
  | 'KERNEL_FAILED';

/**
 * The one error type of Heed. `message` reads `who: what was given; what was expected and what to do`; `code` is stable.
 */
export class HeedError extends Error {
  readonly code: HeedErrorCode;

  constructor(code: HeedErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'HeedError';
    this.code = code;
  }
}

/** Bytes with a unit, as errors and reports print them: `3.20 GiB`, `16 KiB`, `48 B`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  const text = Number.isInteger(value) ? String(value) : value.toFixed(2);
  return `${text} ${units[unit]}`;
}
