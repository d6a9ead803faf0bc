import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { arraySink, writeSafetensors } from '@heed/core/io';

const runner = fileURLToPath(new URL('../golden/main.mjs', import.meta.url));
const golden = (...args: string[]): { status: number | null; lines: string[]; stderr: string } => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [runner, ...args], { encoding: 'utf8', cwd: folder });
  return { status, lines: stdout.split('\n').filter(Boolean), stderr };
};

let folder = '';
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'heed-golden-'));
  const sink = arraySink();
  await writeSafetensors(sink, [], {
    op: 'family/unknown.op',
    params: '{}',
    inputs: '[]',
    outputs: '[]',
    grads: '[]',
    tolerance: '{"atol":0,"rtol":0}',
  });
  writeFileSync(join(folder, 'a.safetensors'), sink.bytes());
  writeFileSync(join(folder, 'b.safetensors'), 'no tensors');
});
afterAll(() => rmSync(folder, { recursive: true }));

test('each case gets one line; an unmapped op and a damaged file end with status 1', () => {
  const { status, lines, stderr } = golden('.', '--tier', 'baseline', '--json', 'report.json');
  expect(lines).toEqual(['unsupported family/unknown.op a.safetensors - baseline -', 'fail - b.safetensors infinite baseline -']);
  expect(stderr).toContain('family/unknown.op is not mapped by any package here; add it to packages/family/test/golden.ts or pass --only');
  expect(stderr).toContain('golden: b.safetensors: safetensors: ');
  expect(stderr).toContain('0 of 2 cases pass');
  expect(status).toBe(1);
  const report = JSON.parse(readFileSync(join(folder, 'report.json'), 'utf8')) as {
    tier: string;
    cases: { status: string; share: unknown }[];
  };
  expect(report.tier).toBe('baseline');
  expect(report.cases.map((one) => [one.status, one.share])).toEqual([
    ['unsupported', 0],
    ['fail', 'infinite'],
  ]);
});

test('--only keeps one op, and what it leaves out of everything is said', () => {
  expect(golden('a.safetensors', '--only', 'family/unknown').lines).toHaveLength(1);
  expect(golden('a.safetensors', '--only', 'family/unk')).toMatchObject({ status: 2, lines: [] });
});

test('requests that make no sense end with status 2 and the usage', () => {
  for (const [args, message] of [
    [[], 'no folder or file was given'],
    [['.', '--tier', 'fast'], '--tier is fast; use one of baseline, subgroups, matrix'],
    [['.', '--speed'], "Unknown option '--speed'"],
    [['none'], 'there is no file or folder none'],
  ] as const) {
    const { status, stderr } = golden(...args);
    expect(stderr).toContain(message);
    expect(status).toBe(2);
  }
});
