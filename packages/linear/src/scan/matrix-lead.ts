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

/** A chunk that only leads in. */
export function leadIn(o: { keys: HeldTile; values: HeldTile; put: string; next: string; update: string }): string {
  return `
          ${o.put}
          ${joinLead({ k: (name) => o.keys.peak(name), v: (name) => o.values.peak(name) })}
          workgroupBarrier();
          ${o.next}
          ${leadRange}
          ${o.update}`;
}
