import { HeedError } from '../errors.js';

/** Bytes that can be read by ranges: a file, an array, an HTTP resource. */
export interface ByteSource {
  /** In bytes. */
  readonly size: number;
  /** Exactly the bytes of this range, which lies inside the source. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** Lets go of what is behind it, a file for instance. */
  close?(): Promise<void>;
}

/** Where bytes are written one after the other. */
export interface ByteSink {
  /** Resolves when `bytes` may be changed again. */
  write(bytes: Uint8Array): Promise<void>;
  /** Ends the writing; what was written is complete only then. */
  close?(): Promise<void>;
}

/** A source over bytes in memory; what it reads are views, not copies. */
export function arraySource(bytes: Uint8Array): ByteSource {
  return {
    size: bytes.byteLength,
    read: (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length)),
  };
}

/** A sink that keeps everything in memory; `bytes()` gives what was written so far as one array. */
export function arraySink(): ByteSink & { bytes(): Uint8Array<ArrayBuffer> } {
  const parts: Uint8Array[] = [];
  let size = 0;
  return {
    write(bytes) {
      parts.push(bytes.slice());
      size += bytes.byteLength;
      return Promise.resolve();
    },
    bytes() {
      const all = new Uint8Array(size);
      let offset = 0;
      for (const part of parts) {
        all.set(part, offset);
        offset += part.byteLength;
      }
      return all;
    },
  };
}

/**
 * A file as a source (Node only); close it after use.
 * @throws HeedError INVALID_FILE when the file is missing, is a folder or cannot be opened
 */
export async function fileSource(path: string): Promise<ByteSource> {
  const { open } = await nodeFiles();
  try {
    const file = await open(path, 'r');
    const { size } = await file.stat();
    return {
      size,
      async read(offset, length) {
        const bytes = new Uint8Array(length);
        let filled = 0;
        while (filled < length) {
          const { bytesRead } = await file.read(bytes, filled, length - filled, offset + filled);
          if (bytesRead === 0) break;
          filled += bytesRead;
        }
        return bytes.subarray(0, filled);
      },
      close: () => file.close(),
    };
  } catch (cause) {
    throw fileError(path, 'read', cause);
  }
}

/**
 * A file as a sink (Node only). What is written goes to `<path>.part`, which takes the file's name in `close`: a run that is
 * cut off leaves the old file whole.
 * @throws HeedError INVALID_FILE when the file cannot be made
 */
export async function fileSink(path: string): Promise<ByteSink & { close(): Promise<void> }> {
  const { open, rename } = await nodeFiles();
  const part = `${path}.part`;
  try {
    const file = await open(part, 'w');
    return {
      async write(bytes) {
        let written = 0;
        while (written < bytes.byteLength) {
          written += (await file.write(bytes, written, bytes.byteLength - written)).bytesWritten;
        }
      },
      async close() {
        await file.sync();
        await file.close();
        await rename(part, path);
      },
    };
  } catch (cause) {
    throw fileError(path, 'write', cause);
  }
}

function nodeFiles(): Promise<typeof import('node:fs/promises')> {
  const name = 'node:fs/promises'; // a variable, so that bundlers for browsers do not follow it
  return import(/* @vite-ignore */ /* webpackIgnore: true */ name) as Promise<typeof import('node:fs/promises')>;
}

function fileError(path: string, verb: 'read' | 'write', cause: unknown): HeedError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new HeedError('INVALID_FILE', `io: cannot ${verb} ${path} (${reason}); check the path and its permissions`, { cause });
}
