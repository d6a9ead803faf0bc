import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { heldOutDocument, readDocument } from '../src/text.js';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'heed-demo-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function file(content: string | Uint8Array): Promise<string> {
  const path = join(folder, 'text.txt');
  await writeFile(path, content);
  return path;
}

test('a text comes back byte for byte', async () => {
  const path = await file('“Avast!”\r\ncried Ahab.\n');
  const { name, bytes } = await readDocument(path);
  expect(name).toBe('text.txt');
  expect(new TextDecoder().decode(bytes)).toBe('“Avast!”\r\ncried Ahab.\n');
});

test('Latin-1 prose is text, though not UTF-8', async () => {
  expect((await readDocument(await file(Buffer.from('Für den König und die Königin, später.', 'latin1')))).bytes).toHaveLength(38);
});

test('a missing file, a folder and an empty file get a sentence', async () => {
  await expect(readDocument(join(folder, 'none.txt'))).rejects.toThrow(/^--text .*none\.txt cannot be read: there is no such file$/);
  await expect(readDocument(join(await file('x'), 'y'))).rejects.toThrow(/there is no such file$/);
  await expect(readDocument(folder)).rejects.toThrow(/is a folder; name a text file$/);
  await expect(readDocument(await file(''))).rejects.toThrow(/is empty; give a file with some text$/);
});

test('a file with a zero byte is binary, or UTF-16', async () => {
  await expect(readDocument(await file(Buffer.from('Call me Ishmael', 'utf16le')))).rejects.toThrow(
    'is binary or UTF-16 (byte 1 is zero); give a text in UTF-8',
  );
});

test('a file of random bytes without zeros is binary', async () => {
  const bytes = Uint8Array.from({ length: 4096 }, (_, i) => 1 + ((Math.imul(i, 2_654_435_761) >>> 13) % 255));
  await expect(readDocument(await file(bytes))).rejects.toThrow(/is binary: \d+ % of its bytes are no text; give a text in UTF-8$/);
});

test('what is no regular file is refused', async () => {
  await expect(readDocument('/dev/null')).rejects.toThrow('--text /dev/null is no regular file; save the text to a file first');
});

test('the shipped text is the end of Moby-Dick and has more than 65,536 tokens', async () => {
  const { bytes } = await heldOutDocument();
  expect(bytes.length).toBeGreaterThan(65_536);
  expect(new TextDecoder().decode(bytes)).toMatch(/^CHAPTER 132\. The Symphony\.\n/);
});
