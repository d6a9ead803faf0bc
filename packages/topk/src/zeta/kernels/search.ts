import type { CurveUniforms } from './codes.js';

/** Run-time values of a search for windows, in one run (sweep.ts) or in all (window.ts), beside those of the curve. */
export const searchUniforms = {
  rows: 'u32',
  curveRow: 'u32',
  levels: 'u32',
  capacity: 'u32',
  block: 'u32',
  queries: 'u32',
  firstQuery: 'u32',
  chunk: 'u32',
  keys: 'u32',
  causal: 'u32',
  window: 'u32',
  slots: 'u32',
  firstSlot: 'u32',
} as const;

export type SearchUniforms = Record<keyof typeof searchUniforms, number> & CurveUniforms;
