import * as Plot from '@observablehq/plot';
import { DOMParser, parseHTML } from 'linkedom';

/** How one series looks everywhere: a colour for light and for dark pages, and a dash so that colour is not the only sign. */
export interface SeriesStyle {
  readonly light: string;
  readonly dark: string;
  /** SVG stroke-dasharray; empty for a solid line. */
  readonly dash: string;
}

// Told apart under the common colour deficiencies, and at least 3:1 against their page.
const STYLES: readonly SeriesStyle[] = [
  { light: '#2a6fc9', dark: '#6ea8f0', dash: '' },
  { light: '#c2510c', dark: '#f0924c', dash: '7 3' },
  { light: '#0b8a6a', dark: '#3cc79f', dash: '2 3' },
  { light: '#8a3fb0', dark: '#c78be6', dash: '9 3 2 3' },
  { light: '#a8324a', dark: '#ef7f93', dash: '' },
  { light: '#6b6f1a', dark: '#b9bd54', dash: '7 3' },
  { light: '#1c7f93', dark: '#5cc3d6', dash: '2 3' },
  { light: '#7a5230', dark: '#c99b6f', dash: '9 3 2 3' },
  { light: '#c2338f', dark: '#f07fc6', dash: '' },
  { light: '#4a4f5a', dark: '#aab1bd', dash: '7 3' },
];

/** The style of the n-th series; an eleventh looks like the first. */
export function seriesStyle(index: number): SeriesStyle {
  return STYLES[index % STYLES.length] as SeriesStyle;
}

/** CSS custom properties `--series-0` ... for `count` series and the page's own colours, for light and dark. */
export function chartColors(count: number): string {
  const list = (mode: 'light' | 'dark'): string =>
    Array.from({ length: count }, (_, i) => `--series-${i}: ${seriesStyle(i)[mode]};`).join(' ');
  return (
    `:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --quiet: #5b6470; --rule: #d9dde2; ${list('light')} }\n` +
    `@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e8eaed; --quiet: #a2abb6; --rule: #343a42; ${list('dark')} } }`
  );
}

/** An empty HTML document without a browser. */
export function newDocument(): Document {
  return parseHTML('<!doctype html><html lang="en"><head></head><body></body></html>').document;
}

/** An empty SVG document: unlike an HTML document it writes itself as XML, in which `<` in an attribute must be escaped. */
export function newSvgDocument(): Document {
  const document = new DOMParser().parseFromString('<svg xmlns="http://www.w3.org/2000/svg"/>', 'image/svg+xml');
  // linkedom types only what it has of a document; createElementNS, all that a plot needs, is among it.
  return document as unknown as Document;
}

/**
 * Draws a plot on a document and gives its svg element, with the text that a screen reader speaks instead.
 * @param label one sentence: what is drawn against what
 */
export function drawPlot(document: Document, options: Plot.PlotOptions, label: string): Element {
  const drawn = Plot.plot({
    style: { background: 'var(--paper)', color: 'var(--ink)', fontFamily: 'system-ui, sans-serif', fontSize: '12px', overflow: 'visible' },
    ...options,
    document,
  });
  const svg = drawn.tagName.toLowerCase() === 'svg' ? drawn : drawn.querySelector('svg');
  if (svg === null) throw new Error('chart: the plot has no svg element; do not ask for a legend that replaces it');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', label);
  return svg;
}
