import { HeedError } from '../errors.js';
import { bfloat16ArrayToFloat32, float32ArrayToBfloat16, float32ArrayToHalf, halfArrayToFloat32 } from '../tensor/half.js';
import type { ByteSink, ByteSource } from './bytes.js';
import { headerLength, invalidFile, parseHeader, safetensorsBytes } from './safetensors-header.js';
import type { SafetensorsDType, SafetensorsEntry } from './safetensors-header.js';

/** What a tensor's values read as: f16 and bf16 become f32, 64-bit integers stay exact. */
export type SafetensorsValues =
  | Float64Array
  | Float32Array
  | Int32Array
  | Uint32Array
  | Int16Array
  | Uint16Array
  | Int8Array
  | Uint8Array
  | BigInt64Array
  | BigUint64Array;

/** An open file: its header is read and checked, its tensors are read on demand. */
export interface SafetensorsFile {
  readonly metadata: ReadonlyMap<string, string>;
  /** By name, in the order of the data. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
  /** The raw little-endian bytes of a tensor; they may lie unaligned inside a larger buffer. */
  bytes(name: string): Promise<Uint8Array>;
  /** The raw bytes in pieces of at most `chunkBytes` (default 16 MiB), for tensors that should not lie in memory whole. */
  chunks(name: string, chunkBytes?: number): AsyncGenerator<Uint8Array>;
  /** The values as a typed array of their own; f16 and bf16 as f32. */
  values(name: string): Promise<SafetensorsValues>;
  /** Closes the source. */
  close(): Promise<void>;
}

/**
 * Opens a safetensors file: reads its header, checks all of it, reads no tensor yet.
 * @throws HeedError INVALID_FILE that says what is wrong where
 */
export async function openSafetensors(source: ByteSource): Promise<SafetensorsFile> {
  if (source.size < 10) invalidFile(`the file has ${source.size} B; the shortest has 8 for a length and 2 for {}`);
  const length = headerLength(await readExactly(source, 0, 8), source.size);
  const { metadata, tensors } = parseHeader(await readExactly(source, 8, length), source.size - 8 - length);

  const entryOf = (name: string): SafetensorsEntry => {
    const entry = tensors.get(name);
    if (entry) return entry;
    const names = [...tensors.keys()];
    const known = `${names.slice(0, 8).join(', ')}${names.length > 8 ? `, ... (${names.length} in all)` : ''}`;
    return invalidFile(`there is no tensor "${name}"; the file has ${known || 'none'}`);
  };
  const bytes = async (name: string): Promise<Uint8Array> => {
    const entry = entryOf(name);
    return readExactly(source, entry.offset, entry.bytes);
  };
  return {
    metadata,
    tensors,
    bytes,
    async *chunks(name, chunkBytes = 16 * 2 ** 20) {
      if (!Number.isSafeInteger(chunkBytes) || chunkBytes < 1) {
        throw new HeedError('INVALID_ARGUMENT', `safetensors: chunkBytes is ${chunkBytes}; use a whole number of bytes, 1 or more`);
      }
      const entry = entryOf(name);
      for (let done = 0; done < entry.bytes; done += chunkBytes) {
        yield await readExactly(source, entry.offset + done, Math.min(chunkBytes, entry.bytes - done));
      }
    },
    async values(name) {
      return decodeValues(await bytes(name), entryOf(name).dtype);
    },
    async close() {
      await source.close?.();
    },
  };
}

/**
 * Little-endian bytes as values; the bytes are copied, so that they need no alignment.
 * @throws HeedError UNSUPPORTED for the two 8-bit float formats, which have no values here (read their bytes)
 */
export function decodeValues(bytes: Uint8Array, dtype: SafetensorsDType): SafetensorsValues {
  const { buffer } = bytes.slice();
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return new Float32Array(buffer);
    case 'F16':
      return halfArrayToFloat32(new Uint16Array(buffer));
    case 'BF16':
      return bfloat16ArrayToFloat32(new Uint16Array(buffer));
    case 'I64':
      return new BigInt64Array(buffer);
    case 'U64':
      return new BigUint64Array(buffer);
    case 'I32':
      return new Int32Array(buffer);
    case 'U32':
      return new Uint32Array(buffer);
    case 'I16':
      return new Int16Array(buffer);
    case 'U16':
      return new Uint16Array(buffer);
    case 'I8':
      return new Int8Array(buffer);
    case 'U8':
    case 'BOOL':
      return new Uint8Array(buffer);
    case 'F8_E4M3':
    case 'F8_E5M2':
      throw new HeedError(
        'UNSUPPORTED',
        `safetensors: ${dtype} values are not converted; convert the file to F16 or F32, or read the bytes`,
      );
  }
}

/** f32 values as the bytes of a float dtype, rounded to nearest even. */
export function encodeFloats(values: Float32Array, dtype: 'F32' | 'F16' | 'BF16'): Uint8Array {
  if (dtype === 'F32') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return new Uint8Array((dtype === 'F16' ? float32ArrayToHalf(values) : float32ArrayToBfloat16(values)).buffer);
}

/** A tensor to be written: its little-endian bytes, or a function that gives them in pieces when their turn comes. */
export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array | (() => AsyncIterable<Uint8Array>);
}

/**
 * Writes a safetensors file to a sink, tensor by tensor; the caller closes the sink. The bytes depend only on what is written:
 * tensors go by element size (large ones first, which aligns all), then by name, metadata by key; the header is padded to 8 bytes.
 * @throws HeedError INVALID_ARGUMENT for two tensors of one name or bytes that do not fill a shape
 */
export async function writeSafetensors(
  sink: ByteSink,
  tensors: Iterable<SafetensorsTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const ordered = [...tensors].sort(
    (a, b) => safetensorsBytes[b.dtype] - safetensorsBytes[a.dtype] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  );
  await sink.write(headerBytes(ordered, metadata));
  for (const tensor of ordered) {
    const expected = tensorBytes(tensor);
    let written = 0;
    for await (const part of typeof tensor.bytes === 'function' ? tensor.bytes() : [tensor.bytes]) {
      written += part.byteLength;
      if (written > expected) break;
      await sink.write(part);
    }
    if (written !== expected) {
      throw new HeedError(
        'INVALID_ARGUMENT',
        `safetensors: tensor "${tensor.name}" gave ${written > expected ? 'more than ' : ''}${Math.min(written, expected)} B; ${tensor.dtype} [${tensor.shape.join(', ')}] needs ${expected} B`,
      );
    }
  }
}

function headerBytes(tensors: readonly SafetensorsTensor[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const entries: [string, unknown][] = [];
  const keys = Object.keys(metadata).sort();
  if (keys.length > 0) entries.push(['__metadata__', Object.fromEntries(keys.map((key) => [key, metadata[key]]))]);
  const names = new Set<string>(['__metadata__']);
  let offset = 0;
  for (const tensor of tensors) {
    if (names.has(tensor.name)) {
      throw new HeedError(
        'INVALID_ARGUMENT',
        `safetensors: the tensor name "${tensor.name}" is taken; names must be unique and not __metadata__`,
      );
    }
    names.add(tensor.name);
    const end = offset + tensorBytes(tensor);
    entries.push([tensor.name, { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const padded = Math.ceil(text.byteLength / 8) * 8;
  const bytes = new Uint8Array(8 + padded).fill(0x20);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, padded, true);
  view.setUint32(4, 0, true);
  bytes.set(text, 8);
  return bytes;
}

function tensorBytes({ dtype, shape }: SafetensorsTensor): number {
  return shape.reduce((product, size) => product * size, safetensorsBytes[dtype]);
}

async function readExactly(source: ByteSource, offset: number, length: number): Promise<Uint8Array> {
  const bytes = await source.read(offset, length);
  if (bytes.byteLength !== length) {
    invalidFile(
      `bytes ${offset} to ${offset + length} were asked for and ${bytes.byteLength} B came; the file was cut short while it was read`,
    );
  }
  return bytes;
}
