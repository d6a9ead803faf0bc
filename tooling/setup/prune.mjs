// Removes built files whose source is gone, so that they are not packed. Runs in a package's folder, before its build.
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const built = existsSync('dist') ? readdirSync('dist', { recursive: true, encoding: 'utf8' }) : [];
const stale = built.filter(
  (file) => /\.(js|js\.map|d\.ts)$/.test(file) && !existsSync(join('src', `${file.replace(/(\.js|\.js\.map|\.d\.ts)$/, '')}.ts`)),
);
for (const file of stale) rmSync(join('dist', file));
