import type { Mask } from '@heed/core/attention';
import { namedMasks, type NamedMask } from '../masks.js';
import type { ElementMaker } from './element.js';

/** Tiles an edge of a picture. */
const TILES = 64;
/** Pairs that are looked at along each edge of a partly visible tile, to find how dark it is. */
const SAMPLES = 4;

/** A picture of a mask's head 0: queries down, keys across; full tiles dark, partly visible ones as dark as they are visible, empty ones blank. */
export function drawMask(document: Document, { mask, name }: NamedMask, tokens: number): Element {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  const tile = Math.max(1, Math.ceil(tokens / TILES));
  const edge = Math.ceil(tokens / tile);
  svg.setAttribute('viewBox', `0 0 ${edge} ${edge}`);
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `The mask ${name}: queries down, keys across.`);
  svg.setAttribute('shape-rendering', 'crispEdges');
  const draw = (x: number, y: number, width: number, opacity: number): void => {
    const rect = document.createElementNS(space, 'rect');
    const place = { x, y, width, height: 1, fill: 'var(--ink)', 'fill-opacity': opacity.toFixed(2) };
    for (const [attribute, value] of Object.entries(place)) rect.setAttribute(attribute, String(value));
    svg.append(rect);
  };
  for (let row = 0; row < edge; row++) {
    for (const [first, end, kind] of mask.runs(0, row, { query: tile, key: tile }, { queries: tokens, keys: tokens })) {
      if (kind === 'full') draw(first, row, end - first, 0.85);
      else
        for (let column = first; column < end; column++)
          draw(column, row, 1, 0.85 * densityOf(mask, row * tile, column * tile, tile, tokens));
    }
  }
  return svg;
}

/** Share of a tile's pairs that are visible, from a few of them. */
function densityOf(mask: Mask, query: number, key: number, tile: number, tokens: number): number {
  let seen = 0;
  for (let i = 0; i < SAMPLES; i++) {
    for (let j = 0; j < SAMPLES; j++) {
      const at = (from: number, n: number): number => Math.min(tokens - 1, from + Math.floor(((n + 0.5) * tile) / SAMPLES));
      if (mask.visible(0, 0, at(query, i), at(key, j))) seen++;
    }
  }
  return seen / SAMPLES ** 2;
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
