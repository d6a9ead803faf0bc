import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BOOK_FILE } from '../src/paths.js';
import { buildCorpus, chapters, cleanText, heldOut, splitBook } from '../src/text/index.js';
import { loadCorpus } from '../src/text/load.js';
import { prepare } from '../src/text/prepare.js';

const EXCERPT = `CHAPTER 1. Loomings.\r
\r
Call me Ishmael. Some years ago—never mind how long precisely—having  \r
little or no money in my purse.\r
\r
\r
     “The ribs and terrors in the whale,
     Arched over me a dismal gloom,

CHAPTER 2. The Carpet-Bag.

I stuffed a shirt or two into my old carpet-bag, tucked it under my
arm, and started.

CHAPTER 3. The Chase.—Third Day.

The morning of the third day dawned fair and fresh.
`;

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (part: Uint8Array): string => new TextDecoder().decode(part);

test('prose is joined to one line a paragraph, verse stays, line ends and blank lines are made one', () => {
  expect(cleanText(EXCERPT)).toBe(`CHAPTER 1. Loomings.

Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse.

     “The ribs and terrors in the whale,
     Arched over me a dismal gloom,

CHAPTER 2. The Carpet-Bag.

I stuffed a shirt or two into my old carpet-bag, tucked it under my arm, and started.

CHAPTER 3. The Chase.—Third Day.

The morning of the third day dawned fair and fresh.
`);
});

test('cleaning a clean text changes nothing, and nothing stays nothing', () => {
  expect(cleanText(cleanText(EXCERPT))).toBe(cleanText(EXCERPT));
  expect(cleanText(' \n\n')).toBe('');
});

test('chapters tile the book from the first heading on, in bytes', () => {
  const book = bytes(cleanText(EXCERPT));
  const found = chapters(book);
  expect(found.map(({ heading }) => heading)).toEqual([
    'CHAPTER 1. Loomings.',
    'CHAPTER 2. The Carpet-Bag.',
    'CHAPTER 3. The Chase.—Third Day.',
  ]);
  expect(found.map(({ start, end }) => text(book.subarray(start, end)))).toEqual(text(book).split(/(?=CHAPTER)/));
});

test('the held-out part begins at the last heading that leaves enough, and both parts make the book', () => {
  const book = bytes(cleanText(EXCERPT));
  const tail = 'CHAPTER 3. The Chase.—Third Day.\n\nThe morning of the third day dawned fair and fresh.\n';
  const exact = bytes(tail).length;
  expect(text(splitBook(book, exact).heldOut)).toBe(tail);
  expect(splitBook(book, exact + 1).chapters).toEqual(['CHAPTER 2. The Carpet-Bag.', 'CHAPTER 3. The Chase.—Third Day.']);
  const { training, heldOut: held } = splitBook(book, exact + 1);
  expect(text(training) + text(held)).toBe(text(book));
});

test('a text without chapters, and one too short to hold anything out, are refused', () => {
  expect(() => chapters(bytes('Call me Ishmael.'))).toThrow(/no line reads "CHAPTER <number>/);
  expect(() => splitBook(bytes(EXCERPT))).toThrow(/leave no training text beside 70000 held-out bytes/);
});

test('the corpus is the addresses and then the book without its end', () => {
  const corpus = buildCorpus(['One.\n', 'Two.\n'], cleanText(EXCERPT), 20);
  const [sotu, book] = corpus.parts;
  expect(text(corpus.bytes.subarray(sotu?.start, sotu?.end))).toBe('One.\n\nTwo.\n\n');
  expect(text(corpus.bytes.subarray(book?.start, book?.end))).toMatch(/^CHAPTER 1\.[^]*and started\.\n\n$/);
  expect(book?.end).toBe(corpus.bytes.length);
});

test('the book that the demo ships is held out from chapter 132 on, 65,536 tokens and more', async () => {
  const book = await readFile(BOOK_FILE);
  const held = heldOut(book);
  expect(splitBook(book).chapters.map((heading) => heading.slice(0, 12))).toEqual([
    'CHAPTER 132.',
    'CHAPTER 133.',
    'CHAPTER 134.',
    'CHAPTER 135.',
  ]);
  expect(held.length).toBeGreaterThanOrEqual(70_000);
  expect(text(held)).toMatch(/rolled on as it rolled five thousand years ago\.\n$/);
  expect(cleanText(text(book))).toBe(text(book));
});

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'heed-lab-'));
  const long = Array.from({ length: 4 }, (_, i) => `CHAPTER ${i + 1}. Part.\n\n${`The sea rolled on, ${i}. `.repeat(2500)}\n\n`).join('');
  for (const path of ['moby-dick/data', 'sotu/data']) await mkdir(join(folder, path), { recursive: true });
  await writeFile(join(folder, 'moby-dick/data/data.txt'), long);
  await writeFile(join(folder, 'sotu/data/1791_b_n.txt'), 'Second.');
  await writeFile(join(folder, 'sotu/data/1790_a_n.txt'), 'First.');
  await writeFile(join(folder, 'sotu/data/1790_a_n.json'), '{}');
});
afterAll(() => rm(folder, { recursive: true }));

test('prepare writes the same bytes each time, in the order of the years, and load checks them', async () => {
  const targets = { corpus: join(folder, 'out'), book: join(folder, 'book.txt') };
  const first = await prepare({ folder }, targets);
  expect(await prepare({ folder }, targets)).toEqual(first);
  const corpus = await loadCorpus(join(folder, 'out/train.bin'));
  expect(corpus.parts).toEqual(first.index.parts);
  expect(text(corpus.bytes).slice(0, 16)).toBe('First.\n\nSecond.\n');
  await writeFile(join(folder, 'out/train.bin'), 'other');
  await expect(loadCorpus(join(folder, 'out/train.bin'))).rejects.toThrow(/has sha256 [0-9a-f]{64}, .*train\.json names/);
});

test('missing sources and a missing corpus are explained', async () => {
  await expect(prepare({ folder: join(folder, 'none') }, { corpus: folder, book: join(folder, 'b') })).rejects.toThrow(
    /moby-dick.*does not exist/,
  );
  await expect(loadCorpus(join(folder, 'none/train.bin'))).rejects.toThrow(/cannot be read; run `npm run lab -- prepare` first/);
  expect(existsSync(join(folder, 'b'))).toBe(false);
});
