import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { HeedError } from '../src/errors.js';
import { arraySink, arraySource, fileSink, fileSource } from '../src/io/bytes.js';
import type { ByteSource } from '../src/io/bytes.js';
import { safetensorsBytes } from '../src/io/safetensors-header.js';
import type { SafetensorsDType } from '../src/io/safetensors-header.js';
import { encodeFloats, openSafetensors, writeSafetensors } from '../src/io/safetensors.js';
import type { SafetensorsTensor } from '../src/io/safetensors.js';

/** A file from a header (JSON text or its object), with `dataBytes` zero bytes behind it. */
function fileOf(header: unknown, dataBytes: number, declaredLength?: number): Uint8Array {
  const text = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + text.byteLength + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(declaredLength ?? text.byteLength), true);
  file.set(text, 8);
  return file;
}

async function written(tensors: SafetensorsTensor[], metadata?: Record<string, string>): Promise<Uint8Array> {
  const sink = arraySink();
  await writeSafetensors(sink, tensors, metadata);
  return sink.bytes();
}

async function failure(file: Uint8Array): Promise<string> {
  const error = await openSafetensors(arraySource(file)).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(HeedError);
  expect((error as HeedError).code).toBe('INVALID_FILE');
  return (error as HeedError).message;
}

const f32 = (name: string, ...values: number[]): SafetensorsTensor => ({
  name,
  dtype: 'F32',
  shape: [values.length],
  bytes: encodeFloats(Float32Array.from(values), 'F32'),
});

test('what is written is read back: values, shapes, metadata, an empty tensor and a scalar', async () => {
  const file = await written(
    [
      { name: 'flags', dtype: 'BOOL', shape: [3], bytes: Uint8Array.of(1, 0, 1) },
      { name: 'half', dtype: 'F16', shape: [2, 1], bytes: encodeFloats(Float32Array.of(1.5, -2), 'F16') },
      { name: 'brain', dtype: 'BF16', shape: [], bytes: encodeFloats(Float32Array.of(0.5), 'BF16') },
      { name: 'empty', dtype: 'F32', shape: [0, 4], bytes: new Uint8Array(0) },
      { name: 'ids', dtype: 'I64', shape: [1], bytes: new Uint8Array(BigInt64Array.of(-5n).buffer) },
      f32('weights', 1, 2, 3),
    ],
    { step: '12', format: 'heed' },
  );
  const opened = await openSafetensors(arraySource(file));
  expect(Object.fromEntries(opened.metadata)).toEqual({ step: '12', format: 'heed' });
  expect([...opened.tensors.keys()]).toEqual(['ids', 'empty', 'weights', 'brain', 'half', 'flags']);
  expect(opened.tensors.get('half')?.shape).toEqual([2, 1]);
  expect(await opened.values('half')).toEqual(Float32Array.of(1.5, -2));
  expect(await opened.values('brain')).toEqual(Float32Array.of(0.5));
  expect(await opened.values('flags')).toEqual(Uint8Array.of(1, 0, 1));
  expect(await opened.values('ids')).toEqual(BigInt64Array.of(-5n));
  expect(await opened.values('empty')).toEqual(new Float32Array(0));
  expect(await opened.values('weights')).toEqual(Float32Array.of(1, 2, 3));
});

test('the bytes of a file do not depend on the order in which tensors and metadata are given', async () => {
  const tensors = [f32('b', 1), f32('a', 2), { name: 'c', dtype: 'U8', shape: [3], bytes: Uint8Array.of(1, 2, 3) } as const];
  const one = await written(tensors, { x: '1', y: '2' });
  expect(await written([...tensors].reverse(), { y: '2', x: '1' })).toEqual(one);
  expect(new DataView(one.buffer).getUint32(0, true) % 8).toBe(0);
});

test('tensors at odd offsets are copied into place', async () => {
  const file = fileOf({ a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] }, b: { dtype: 'F64', shape: [1], data_offsets: [1, 9] } }, 9);
  new DataView(file.buffer).setFloat64(file.byteLength - 8, 2.25, true);
  expect(await (await openSafetensors(arraySource(file))).values('b')).toEqual(Float64Array.of(2.25));
});

test('a large tensor comes in pieces and goes in pieces', async () => {
  const bytes = Uint8Array.from({ length: 10 }, (_, i) => i);
  async function* pieces(): AsyncGenerator<Uint8Array> {
    yield bytes.subarray(0, 4);
    yield bytes.subarray(4);
  }
  const opened = await openSafetensors(arraySource(await written([{ name: 'x', dtype: 'U8', shape: [10], bytes: pieces }])));
  const sizes: number[] = [];
  for await (const chunk of opened.chunks('x', 4)) sizes.push(chunk.byteLength);
  expect(sizes).toEqual([4, 4, 2]);
  expect(await opened.bytes('x')).toEqual(bytes);
});

test('a file on disk: the old one stays whole until the new one is closed', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'heed-'));
  try {
    const path = join(folder, 'model.safetensors');
    for (const value of [1, 2]) {
      const sink = await fileSink(path);
      await writeSafetensors(sink, [f32('w', value, value)]);
      if (value === 2) expect((await readFile(path)).at(-1)).toBe(0x3f);
      await sink.close();
    }
    const opened = await openSafetensors(await fileSource(path));
    expect(await opened.values('w')).toEqual(Float32Array.of(2, 2));
    await opened.close();
    await expect(fileSource(join(folder, 'none'))).rejects.toThrow(/io: cannot read .*none.*check the path/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

const entry = (dtype: unknown, shape: unknown, data_offsets: unknown): unknown => ({ dtype, shape, data_offsets });
const broken: [string, Uint8Array, string][] = [
  ['shorter than a header', new Uint8Array(5), 'the file has 5 B'],
  ['no header', fileOf('', 2, 0), 'a header of 0 bytes'],
  ['a header beyond the file', fileOf('{}', 0, 3), 'the file has 2 B after them'],
  ['a header of 2^63 bytes', fileOf('{}', 0, 2 ** 63), 'it is cut short or is no safetensors file'],
  ['no object', fileOf('[]', 0), 'does not begin with {'],
  ['broken JSON', fileOf('{"a":', 0), 'the header is no JSON in UTF-8'],
  ['broken UTF-8', Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0xff), 'the header is no JSON in UTF-8'],
  ['a name twice', fileOf('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061" : 1}', 0), 'has the name "a" twice'],
  ['a field twice', fileOf('{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0), 'has the name "dtype" twice'],
  ['metadata that is a list', fileOf({ __metadata__: [] }, 0), '__metadata__ is []; it must map strings to strings'],
  ['metadata with a number', fileOf({ __metadata__: { step: 1 } }, 0), '__metadata__ "step" is 1; it must be a string'],
  ['an entry that is a number', fileOf({ a: 1 }, 0), 'tensor "a" is 1; it must be {dtype, shape, data_offsets}'],
  ['an unknown field', fileOf({ a: { dtype: 'U8', shape: [0], data_offsets: [0, 0], x: 1 } }, 0), 'unknown field "x"'],
  ['an unknown dtype', fileOf({ a: entry('toString', [1], [0, 4]) }, 4), 'has dtype "toString"; known are F64'],
  ['a missing shape', fileOf({ a: entry('F32', undefined, [0, 4]) }, 4), 'has shape missing'],
  ['a negative size', fileOf({ a: entry('F32', [-1], [0, 4]) }, 4), 'has shape [-1]'],
  ['a nested shape', fileOf({ a: entry('F32', [[1]], [0, 4]) }, 4), 'has shape a nested list'],
  ['one offset', fileOf({ a: entry('F32', [1], [4]) }, 4), 'has data_offsets [4]; it must be [begin, end]'],
  ['offsets backwards', fileOf({ a: entry('F32', [1], [4, 0]) }, 4), 'lies at data_offsets [4, 0]; the file holds [0, 4]'],
  ['offsets beyond the file', fileOf({ a: entry('F32', [2], [0, 8]) }, 4), 'lies at data_offsets [0, 8]; the file holds [0, 4]'],
  ['a range of another size', fileOf({ a: entry('F32', [3], [0, 4]) }, 4), 'F32 [3] and needs 12 B; its data_offsets [0, 4] hold 4 B'],
  ['a size that overflows', fileOf({ a: entry('F32', [2 ** 52, 2 ** 52, 2 ** 52], [0, 4]) }, 4), 'hold 4 B'],
  [
    'two tensors in one place',
    fileOf({ a: entry('F32', [1], [0, 4]), b: entry('U8', [2], [3, 5]) }, 5),
    'tensors "a" and "b" overlap at byte',
  ],
  ['a hole', fileOf({ a: entry('U8', [1], [0, 1]), b: entry('U8', [1], [2, 3]) }, 3), 'before tensor "b", belong to no tensor'],
  ['bytes behind the last tensor', fileOf({ a: entry('U8', [1], [0, 1]) }, 3), 'the last 2 B of the file belong to no tensor'],
];
for (const [what, file, message] of broken) {
  test(`${what} is refused in words`, async () => {
    expect(await failure(file)).toContain(message);
  });
}

test('a header nested 200,000 deep is refused without a stack overflow', async () => {
  expect(
    await failure(fileOf(`{"a":{"dtype":"U8","shape":${'['.repeat(200_000)}${']'.repeat(200_000)},"data_offsets":[0,0]}}`, 0)),
  ).toContain('has shape a nested list');
});

test('a hostile header length makes nothing larger than the file be read', async () => {
  const reads: number[] = [];
  const source = (size: number, length: number): ByteSource => ({
    size,
    read: (_, count) => {
      reads.push(count);
      return Promise.resolve(fileOf('', 0, length));
    },
  });
  await expect(openSafetensors(source(1000, 2 ** 40))).rejects.toThrow('a header of 1 TiB, the file has 992 B');
  await expect(openSafetensors(source(2 ** 40, 2 ** 39))).rejects.toThrow('at most 95.37 MiB are allowed');
  expect(reads).toEqual([8, 8]);
});

test('a source that ends early is an invalid file', async () => {
  const file = await written([f32('a', 1, 2)]);
  const opened = await openSafetensors({
    size: file.byteLength,
    read: (from, count) => Promise.resolve(file.subarray(from, Math.min(from + count, file.byteLength - 4))),
  });
  await expect(opened.values('a')).rejects.toThrow('the file was cut short while it was read');
  await expect(opened.values('b')).rejects.toThrow('there is no tensor "b"; the file has a');
});

test('the writer refuses a taken name and bytes that do not fill a shape', async () => {
  await expect(written([f32('a', 1), f32('a', 2)])).rejects.toThrow('the tensor name "a" is taken');
  await expect(written([{ ...f32('a', 1), shape: [2] }])).rejects.toThrow('tensor "a" gave 4 B; F32 [2] needs 8 B');
  await expect(written([{ ...f32('a', 1, 2), shape: [1] }])).rejects.toThrow('gave more than 4 B; F32 [1] needs 4 B');
});

const dtypes = Object.keys(safetensorsBytes) as SafetensorsDType[];
const tensorSet = fc
  .uniqueArray(
    fc.record({ name: fc.string(), dtype: fc.constantFrom(...dtypes), shape: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 3 }) }),
    { selector: (tensor) => tensor.name, maxLength: 5 },
  )
  .map((tensors) => tensors.filter(({ name }) => name !== '__metadata__'));

test('any set of tensors comes back byte for byte', async () => {
  await fc.assert(
    fc.asyncProperty(tensorSet, fc.dictionary(fc.string(), fc.string(), { maxKeys: 3 }), async (shapes, metadata) => {
      const tensors = shapes.map(({ name, dtype, shape }, t) => ({
        name,
        dtype,
        shape,
        bytes: Uint8Array.from({ length: shape.reduce((a, b) => a * b, safetensorsBytes[dtype]) }, (_, i) => 31 * t + i),
      }));
      const opened = await openSafetensors(arraySource(await written(tensors, metadata)));
      expect(Object.fromEntries(opened.metadata)).toEqual({ ...metadata });
      for (const tensor of tensors) {
        expect(opened.tensors.get(tensor.name)).toMatchObject({ dtype: tensor.dtype, shape: tensor.shape });
        expect(await opened.bytes(tensor.name)).toEqual(tensor.bytes);
      }
    }),
    { seed: 7, numRuns: 100 },
  );
});

test('a damaged file is refused with INVALID_FILE or still consistent; nothing else is ever thrown', async () => {
  const whole = await written(
    [f32('weights', 1, 2, 3), f32('bias', 4), { name: 'ids', dtype: 'I32', shape: [2, 2], bytes: new Uint8Array(16) }],
    { step: '3' },
  );
  const headerBytes = new DataView(whole.buffer).getUint32(0, true) + 8;
  const damage = fc.array(fc.tuple(fc.nat(headerBytes - 1), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 4 });
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(damage, fc.nat(whole.byteLength), fc.boolean(), async (changes, cut, cuts) => {
      const file = cuts ? whole.slice(0, cut) : whole.slice();
      for (const [at, value] of changes) file[at] = value;
      try {
        const opened = await openSafetensors(arraySource(file));
        for (const { name, bytes } of opened.tensors.values()) expect((await opened.bytes(name)).byteLength).toBe(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(HeedError);
        expect((error as HeedError).code).toBe('INVALID_FILE');
        refused++;
      }
    }),
    { seed: 8, numRuns: 1500 },
  );
  expect(refused).toBeGreaterThan(1000);
});

test('arbitrary JSON as a header is refused with INVALID_FILE or consistent', async () => {
  const value = fc.oneof(
    fc.json(),
    fc
      .record({
        a: fc.record({
          dtype: fc.constantFrom('F32', 'U8'),
          shape: fc.array(fc.integer()),
          data_offsets: fc.array(fc.integer({ min: -1, max: 8 })),
        }),
      })
      .map((header) => JSON.stringify(header)),
  );
  await fc.assert(
    fc.asyncProperty(value, async (header) => {
      try {
        await openSafetensors(arraySource(fileOf(header, 4)));
      } catch (error) {
        expect((error as HeedError).code).toBe('INVALID_FILE');
      }
    }),
    { seed: 9, numRuns: 400 },
  );
});
