import { namedMasks, type NamedMask } from '../masks.js';
import type { ElementMaker } from './element.js';

/** Tiles an edge of a picture. */
const TILES = 48;

/** A picture of a mask's head 0: queries down, keys across; full tiles dark, partial ones lighter, empty ones blank. */
export function drawMask(document: Document, { mask, name }: NamedMask, tokens: number): Element {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  const tile = Math.max(1, Math.ceil(tokens / TILES));
  const edge = Math.ceil(tokens / tile);
  svg.setAttribute('viewBox', `0 0 ${edge} ${edge}`);
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `The mask ${name}: queries down, keys across.`);
  for (let row = 0; row < edge; row++) {
    for (const [first, end, kind] of mask.runs(0, row, { query: tile, key: tile }, { queries: tokens, keys: tokens })) {
      const rect = document.createElementNS(space, 'rect');
      const place = { x: first, y: row, width: end - first, height: 1, fill: 'var(--ink)', 'fill-opacity': kind === 'full' ? 0.85 : 0.4 };
      for (const [attribute, value] of Object.entries(place)) rect.setAttribute(attribute, String(value));
      svg.append(rect);
    }
  }
  return svg;
}

/** Pictures of the 14 masks. */
export function maskGallery(document: Document, make: ElementMaker, tokens: number, caption: (name: string) => string): Element {
  const figures = namedMasks(tokens, 1).map((named) =>
    make(
      'figure',
      {},
      drawMask(document, named, tokens),
      make('figcaption', {}, make('h3', {}, `${named.number} ${named.name}`), make('p', {}, caption(named.name))),
    ),
  );
  return make('div', { class: 'masks' }, ...figures);
}
