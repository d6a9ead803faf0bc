import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { promisify } from 'node:util';

/** The commit that is checked out, with `+` where files differ from it; HEED_COMMIT where there is no repository. */
export async function commitOf(): Promise<string> {
  const named = process.env['HEED_COMMIT'];
  if (named !== undefined) return named;
  const git = async (...args: string[]): Promise<string> =>
    (await promisify(execFile)('git', args, { cwd: import.meta.dirname })).stdout.trim();
  try {
    const commit = await git('rev-parse', '--short=12', 'HEAD');
    return (await git('status', '--porcelain', '--untracked-files=no')) === '' ? commit : `${commit}+`;
  } catch {
    return 'unknown';
  }
}

/** Versions of what took part. */
export async function versionsOf(): Promise<Record<string, string>> {
  const versions: Record<string, string> = { node: process.version };
  const version = async (manifest: string): Promise<string> =>
    (JSON.parse(await readFile(manifest, 'utf8')) as { version: string }).version;
  const resolve = createRequire(import.meta.url).resolve;
  for (const name of ['@heed/core', 'webgpu']) {
    try {
      versions[name] = await version(resolve(`${name}/package.json`));
    } catch {
      versions[name] = process.env['HEED_VERSION'] ?? 'bundled';
    }
  }
  return versions;
}
