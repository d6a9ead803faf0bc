// Reads imports and exports of TypeScript sources as text; enough for rules about who imports whom.
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { root } from '../setup/root.mjs';

export interface Import {
  /** The importing file, relative to the workspace root, with forward slashes. */
  file: string;
  specifier: string;
  /** The imported file for a relative specifier, relative to the workspace root; otherwise undefined. */
  target: string | undefined;
  /** Whether the import vanishes when types are erased. */
  typeOnly: boolean;
}

const slashes = (path: string): string => path.split(sep).join('/');

/** TypeScript files below a folder of the workspace, sorted; empty when the folder does not exist. */
export function sources(folder: string): string[] {
  const path = join(root, folder);
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|mjs)$/.test(entry.name))
    .map((entry) => slashes(relative(root, join(entry.parentPath, entry.name))))
    .filter((file) => !/(^|\/)(node_modules|dist|\.tsbuild)\//.test(file))
    .sort();
}

const STATEMENT =
  /^\s*(?:import|export)\b([^;'"]*?)\bfrom\s*['"]([^'"]+)['"]|^\s*import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]\s*\)/gm;

/** Every import of a file: static, re-exported and dynamic with a literal name. */
export function importsOf(file: string): Import[] {
  const text = readFileSync(join(root, file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, '');
  return [...text.matchAll(STATEMENT)].map((match) => {
    const specifier = match[2] ?? match[3] ?? match[4] ?? '';
    const dynamic = match[4] !== undefined;
    return {
      file,
      specifier,
      target: specifier.startsWith('.') ? slashes(relative(root, resolve(root, dirname(file), specifier))) : undefined,
      typeOnly: dynamic ? /typeof\s*$/.test(text.slice(0, match.index)) : /^\s*type\b/.test(match[1] ?? ''),
    };
  });
}
