// Derives the apt entry of a backports suite from the entries that a machine has, so that its mirror and its keys stay in use.

/** @typedef {{ format: 'sources' | 'list', text: string }} AptEntry an entry in the format of the file it came from */

/** Suites under which a release's main archive may be named. @param {string} codename */
const mainSuites = (codename) => new Set([codename, 'stable', 'oldstable', 'oldoldstable']);

/**
 * Fields of a deb822 stanza in their order; a value keeps its continuation lines.
 * @param {string} stanza
 */
function fieldsOf(stanza) {
  /** @type {[string, string][]} */
  const fields = [];
  for (const line of stanza.split('\n')) {
    if (line.startsWith('#') || line.trim() === '') continue;
    const last = fields.at(-1);
    if (/^\s/.test(line) && last) last[1] += `\n${line}`;
    else {
      const colon = line.indexOf(':');
      if (colon > 0) fields.push([line.slice(0, colon), line.slice(colon + 1).trim()]);
    }
  }
  return fields;
}

/** @param {string} text @param {string} codename @returns {AptEntry | undefined} */
function fromSources(text, codename) {
  for (const stanza of text.split(/\n\s*\n/)) {
    const fields = fieldsOf(stanza);
    const words = (/** @type {string} */ name) =>
      (fields.find(([key]) => key.toLowerCase() === name)?.[1] ?? '').split(/\s+/).filter(Boolean);
    if (words('enabled')[0]?.toLowerCase() === 'no' || !words('types').includes('deb') || !words('components').includes('main')) continue;
    if (!words('suites').some((suite) => mainSuites(codename).has(suite))) continue;
    const uri = words('uris').find((word) => !word.startsWith('cdrom:'));
    if (!uri) continue;
    /** @type {Record<string, string>} */
    const replaced = { types: 'deb', uris: uri, suites: `${codename}-backports`, components: 'main' };
    const lines = fields.map(([key, value]) => `${key}: ${replaced[key.toLowerCase()] ?? value}`);
    return { format: 'sources', text: `${lines.join('\n')}\n` };
  }
  return undefined;
}

/** @param {string} text @param {string} codename @returns {AptEntry | undefined} */
function fromList(text, codename) {
  for (const line of text.split('\n')) {
    const match = /^deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/.exec(line.trim());
    if (!match) continue;
    const [, options = '', uri = '', suite = '', components = ''] = match;
    if (uri.startsWith('cdrom:') || !mainSuites(codename).has(suite) || !components.split(/\s+/).includes('main')) continue;
    return { format: 'list', text: `deb ${options}${uri} ${codename}-backports main\n` };
  }
  return undefined;
}

/**
 * The backports entry of a release, or undefined when the machine has no entry of the release's main archive.
 * @param {{ path: string, text: string }[]} files the machine's source files
 * @param {string} codename for example `bookworm`
 * @returns {AptEntry | undefined}
 */
export function backportsEntry(files, codename) {
  for (const { path, text } of files) {
    const entry = path.endsWith('.sources') ? fromSources(text, codename) : path.endsWith('.list') ? fromList(text, codename) : undefined;
    if (entry) return entry;
  }
  return undefined;
}

/** Whether a source file already names the backports of a release. @param {{ path: string, text: string }[]} files @param {string} codename */
export function hasBackports(files, codename) {
  const suite = new RegExp(`(^|\\s)${codename}-backports(\\s|$)`);
  return files.some(
    ({ path, text }) => /\.(sources|list)$/.test(path) && text.split('\n').some((line) => !line.trim().startsWith('#') && suite.test(line)),
  );
}
