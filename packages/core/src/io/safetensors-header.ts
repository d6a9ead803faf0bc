import { HeedError, formatBytes } from '../errors.js';

/** Bytes of one element of each dtype that a safetensors file may hold here. */
export const safetensorsBytes = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  U64: 8,
  I32: 4,
  U32: 4,
  I16: 2,
  U16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
} as const;

export type SafetensorsDType = keyof typeof safetensorsBytes;

/** One tensor of a file: `offset` and `bytes` are its place in the whole file. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly offset: number;
  readonly bytes: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  /** By name, in the order of the data. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
}

/** The format's own bound on the header; it also bounds what a hostile length can make us allocate. */
const maxHeaderBytes = 100_000_000;
const maxRank = 32;

/** Throws INVALID_FILE in the house form. */
export function invalidFile(what: string, cause?: unknown): never {
  throw new HeedError('INVALID_FILE', `safetensors: ${what}`, cause === undefined ? undefined : { cause });
}

/**
 * Length of the JSON header from a file's first 8 bytes.
 * @throws HeedError INVALID_FILE when it is 0, above 100 MB or reaches beyond the file
 */
export function headerLength(first: Uint8Array, fileBytes: number): number {
  const view = new DataView(first.buffer, first.byteOffset, 8);
  const length = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  if (length < 2) invalidFile(`bytes 0 to 7 give a header of ${length} bytes; a header has at least the 2 of {}`);
  if (length > fileBytes - 8) {
    invalidFile(
      `bytes 0 to 7 give a header of ${formatBytes(length)}, the file has ${formatBytes(fileBytes - 8)} after them; it is cut short or is no safetensors file`,
    );
  }
  if (length > maxHeaderBytes) {
    invalidFile(`bytes 0 to 7 give a header of ${formatBytes(length)}; at most ${formatBytes(maxHeaderBytes)} are allowed`);
  }
  return length;
}

/**
 * Reads and checks a header: JSON without duplicate names, known dtypes, ranges that match their shapes and cover the data
 * from its first to its last byte without overlap or hole.
 * @param header the bytes of the JSON text
 * @param dataBytes bytes of the file behind the header
 * @throws HeedError INVALID_FILE that says what is wrong where
 */
export function parseHeader(header: Uint8Array, dataBytes: number): SafetensorsHeader {
  const root = parseJson(header);
  let metadata = new Map<string, string>();
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of Object.entries(root)) {
    if (name === '__metadata__') metadata = parseMetadata(value);
    else entries.push(parseEntry(name, value, 8 + header.byteLength, dataBytes));
  }
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  expectCovered(entries, 8 + header.byteLength, dataBytes);
  return { metadata, tensors: new Map(entries.map((entry) => [entry.name, entry])) };
}

function parseJson(header: Uint8Array): Record<string, unknown> {
  if (header[0] !== 0x7b) invalidFile('the header at byte 8 does not begin with {; it must be a JSON object');
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(header);
    const root = JSON.parse(text) as Record<string, unknown>;
    expectUniqueKeys(text);
    return root;
  } catch (error) {
    if (error instanceof HeedError) throw error;
    return invalidFile(`the header is no JSON in UTF-8 (${error instanceof Error ? error.message : String(error)})`, error);
  }
}

/**
 * JSON.parse keeps the last of two equal names; the format forbids them. `text` is valid JSON.
 * A scan by hand: a regular expression over strings of megabytes can overflow the engine's stack.
 */
function expectUniqueKeys(text: string): void {
  // One set of names an open object, undefined for an open array.
  const open: (Set<string> | undefined)[] = [];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '{') open.push(new Set());
    else if (character === '[') open.push(undefined);
    else if (character === '}' || character === ']') open.pop();
    else if (character === '"') {
      const start = i++;
      while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
      let next = i + 1;
      while (' \t\n\r'.includes(text[next] ?? '}')) next++;
      if (text[next] !== ':') continue;
      const name = JSON.parse(text.slice(start, i + 1)) as string;
      const names = open.at(-1);
      if (names?.has(name)) invalidFile(`the header has the name ${quote(name)} twice; names must be unique`);
      names?.add(name);
    }
  }
}

function parseMetadata(value: unknown): Map<string, string> {
  if (!isRecord(value)) return invalidFile(`__metadata__ is ${describe(value)}; it must map strings to strings`);
  return new Map(
    Object.entries(value).map(([key, text]) => {
      if (typeof text !== 'string') return invalidFile(`__metadata__ ${quote(key)} is ${describe(text)}; it must be a string`);
      return [key, text];
    }),
  );
}

function parseEntry(name: string, value: unknown, dataStart: number, dataBytes: number): SafetensorsEntry {
  const who = `tensor ${quote(name)}`;
  if (!isRecord(value)) return invalidFile(`${who} is ${describe(value)}; it must be {dtype, shape, data_offsets}`);
  for (const key of Object.keys(value)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') invalidFile(`${who} has an unknown field ${quote(key)}`);
  }
  const { dtype, shape, data_offsets: range } = value;
  if (!isDType(dtype)) {
    return invalidFile(`${who} has dtype ${describe(dtype)}; known are ${Object.keys(safetensorsBytes).join(', ')}`);
  }
  if (!isSizes(shape) || shape.length > maxRank) {
    return invalidFile(`${who} has shape ${describe(shape)}; it must be a list of at most ${maxRank} sizes, 0 or more`);
  }
  if (!isSizes(range) || range.length !== 2) return invalidFile(`${who} has data_offsets ${describe(range)}; it must be [begin, end]`);
  const [begin, end] = range as [number, number];
  if (begin > end || end > dataBytes) {
    invalidFile(`${who} lies at data_offsets [${begin}, ${end}]; the file holds [0, ${dataBytes}]`);
  }
  // A product beyond 2^53 is inexact, and then never equal to a range inside a file.
  const bytes = shape.reduce((product, size) => product * size, 1) * safetensorsBytes[dtype];
  if (bytes !== end - begin) {
    invalidFile(`${who} is ${dtype} [${shape.join(', ')}] and needs ${bytes} B; its data_offsets [${begin}, ${end}] hold ${end - begin} B`);
  }
  return { name, dtype, shape, offset: dataStart + begin, bytes };
}

function expectCovered(entries: readonly SafetensorsEntry[], dataStart: number, dataBytes: number): void {
  let end = dataStart;
  let before = '';
  for (const { name, offset, bytes } of entries) {
    if (offset < end) invalidFile(`tensors ${quote(before)} and ${quote(name)} overlap at byte ${offset} of the file`);
    if (offset > end) invalidFile(`bytes ${end} to ${offset} of the file, before tensor ${quote(name)}, belong to no tensor`);
    end = offset + bytes;
    before = name;
  }
  if (end !== dataStart + dataBytes) {
    invalidFile(`the last ${dataStart + dataBytes - end} B of the file belong to no tensor`);
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isDType(value: unknown): value is SafetensorsDType {
  return typeof value === 'string' && Object.hasOwn(safetensorsBytes, value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** A value for an error text, at most 60 characters of it. */
function describe(value: unknown): string {
  if (value === undefined) return 'missing';
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return 'an object';
  // Deeply nested arrays would overflow the stack of JSON.stringify.
  if (Array.isArray(value) && value.some((item) => typeof item === 'object')) return 'a nested list';
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

function quote(name: string): string {
  return describe(name);
}
