import { open, readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { heldOut } from '@heed/lab/text';
import { UsageError } from './usage.js';

/** A document to read, as bytes: one byte is one token. */
export interface TextDocument {
  /** As shown to people. */
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Files beyond this size are read up to it only: far more than any device here holds as a context. */
export const LARGEST_TEXT_BYTES: number = 64 * 2 ** 20;

/** Share of bytes outside UTF-8 or of control bytes at which a file counts as binary; Latin-1 prose stays below. */
const BINARY_SHARE = 0.2;

/** The held-out last chapters of Moby-Dick, shipped with the demo. */
export async function heldOutDocument(): Promise<TextDocument> {
  // src/ and dist/ lie side by side, so that the same relative path holds for sources and for the build.
  const book = await readFile(fileURLToPath(new URL('../assets/moby-dick.txt', import.meta.url)));
  return { name: 'Moby-Dick, chapters 132 to 135', bytes: heldOut(book) };
}

/**
 * Reads a text of the user's.
 * @throws UsageError when the file is missing, no regular file, not readable, empty or binary
 */
export async function readDocument(path: string): Promise<TextDocument> {
  const file = await open(path, 'r').catch((cause: unknown) => {
    throw new UsageError(`--text ${path} cannot be read: ${reason(cause)}`, { cause });
  });
  try {
    const status = await file.stat();
    if (status.isDirectory()) throw new UsageError(`--text ${path} is a folder; name a text file`);
    if (!status.isFile()) throw new UsageError(`--text ${path} is no regular file; save the text to a file first`);
    if (status.size === 0) throw new UsageError(`--text ${path} is empty; give a file with some text`);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(Math.min(status.size, LARGEST_TEXT_BYTES)));
    const bytes = buffer.subarray(0, bytesRead);
    expectText(bytes, path);
    return { name: basename(path), bytes };
  } finally {
    await file.close();
  }
}

function reason(cause: unknown): string {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  if (code === 'ENOENT' || code === 'ENOTDIR') return 'there is no such file';
  if (code === 'EACCES' || code === 'EPERM') return 'no permission to open it';
  return cause instanceof Error ? cause.message : String(cause);
}

function expectText(bytes: Uint8Array, path: string): void {
  const zeros = bytes.indexOf(0);
  if (zeros >= 0) throw new UsageError(`--text ${path} is binary or UTF-16 (byte ${zeros} is zero); give a text in UTF-8`);
  const share = strangeBytes(bytes) / bytes.length;
  if (share > BINARY_SHARE) {
    throw new UsageError(`--text ${path} is binary: ${Math.round(100 * share)} % of its bytes are no text; give a text in UTF-8`);
  }
}

/** Bytes that are not UTF-8, and control characters other than tab, line feed, form feed, carriage return and escape. */
function strangeBytes(bytes: Uint8Array): number {
  const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  const replaced = text.match(/\uFFFD/g)?.length ?? 0;
  let control = 0;
  for (const byte of bytes) if (byte < 32 && byte !== 9 && byte !== 10 && byte !== 12 && byte !== 13 && byte !== 27) control++;
  return replaced + control;
}
