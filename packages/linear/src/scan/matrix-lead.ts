import type { HeldTile } from './held-tile.js';
import { joinLead, leadRange } from './matrix-range.js';

// What a workgroup does before a run of tokens that it makes the state for itself (see ranges.ts).

/**
 * `at`: where the tokens begin that still count at the first of a run, whole chunks before it. None for a run without tokens, unless
 * the state behind it is wanted.
 */
export function leadFrom(chunk: number, final: boolean): string {
  return `
        let leadTokens = (aliveOf(rate) + ${chunk - 1}u) / ${chunk}u * ${chunk}u;
        let leads = first < end${final ? ' || lastToken >= uniforms.tokens' : ''};
        var at = first - select(0u, min(first, leadTokens), leads);`;
}

/** `text`, under a condition where there is a choice. */
export function only(choice: boolean, condition: string, text: string): string {
  return choice ? `if (${condition}) { ${text} }` : text;
}

/**
 * The tokens from `at` to `first` update the state. Keys and values come two chunks ahead: a chunk of them alone takes less time than
 * loads from memory. Those of the chunk at `first` are held then.
 */
export function leadIn(o: {
  keys: HeldTile;
  values: HeldTile;
  chunk: number;
  head: (registers: 'held' | 'next') => string;
  keyFactor: string;
  onward: string;
  update: () => string;
}): string {
  const { keys, values, chunk } = o;
  const fetch = (from: string, registers: 'held' | 'next'): string => `
            let ${registers}At = min(${from}, end);
            let ${registers}Count = min(${chunk}u, end - ${registers}At);
            ${keys.fetch(`${registers}At`, `${registers}Count`, registers)} ${values.fetch(`${registers}At`, `${registers}Count`, registers)}`;
  const one = (registers: 'held' | 'next'): string => `
          {
            ${o.head(registers)}
            ${keys.put(o.keyFactor, registers)}
            ${values.put(undefined, registers)}
            ${joinLead({ k: (name) => keys.peak(name, registers), v: (name) => values.peak(name, registers) })}
            workgroupBarrier();
            ${fetch(`at + ${2 * chunk}u`, registers)}
            ${o.onward}
            ${leadRange}
            ${o.update()}
            at += held;
            count = min(${chunk}u, end - at);
            workgroupBarrier();
          }`;
  return `
        ${keys.declare('next')} ${values.declare('next')}
        ${fetch('at', 'held')}
        ${fetch(`at + ${chunk}u`, 'next')}
        while (at < first) {
          ${one('held')}
          if (at < first) { ${one('next')} } else { ${keys.take()} ${values.take()} }
        }`;
}
