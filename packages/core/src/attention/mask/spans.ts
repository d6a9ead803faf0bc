import type { Coverage, Run, Spans } from './types.js';

// Sets of positions as sorted disjoint half-open intervals in a flat list, and their algebra.

export const NOTHING: Coverage = { all: [], some: [] };

/** [start, end) cut to [from, to). */
export function span(start: number, end: number, from: number, to: number): Spans {
  const low = Math.max(start, from);
  const high = Math.min(end, to);
  return low < high ? [low, high] : [];
}

/** Number of positions. */
export function sizeOfSpans(a: Spans): number {
  let size = 0;
  for (let i = 0; i < a.length; i += 2) size += a[i + 1]! - a[i]!;
  return size;
}

/** The part inside [from, to); binary search for its ends. */
export function clipSpans(a: Spans, from: number, to: number): Spans {
  if (a.length === 0 || (a[0]! >= from && a[a.length - 1]! <= to)) return a;
  const out: number[] = [];
  for (let i = firstEndingAfter(a, from); i < a.length && a[i]! < to; i += 2) out.push(Math.max(a[i]!, from), Math.min(a[i + 1]!, to));
  return out;
}

/** Index of the first interval that ends after a position. */
function firstEndingAfter(a: Spans, position: number): number {
  let low = 0;
  let high = a.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (a[2 * middle + 1]! > position) high = middle;
    else low = middle + 1;
  }
  return 2 * low;
}

/** Whether [low, high) lies inside one interval. */
export function spansContain(a: Spans, low: number, high: number): boolean {
  const i = firstEndingAfter(a, low);
  return i < a.length && a[i]! <= low && a[i + 1]! >= high;
}

export function intersectSpans(a: Spans, b: Spans): Spans {
  const out: number[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const low = Math.max(a[i]!, b[j]!);
    const high = Math.min(a[i + 1]!, b[j + 1]!);
    if (low < high) out.push(low, high);
    if (a[i + 1]! < b[j + 1]!) i += 2;
    else j += 2;
  }
  return out;
}

export function uniteSpans(a: Spans, b: Spans): Spans {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  const out: number[] = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    const fromA = j >= b.length || (i < a.length && a[i]! <= b[j]!);
    const start = fromA ? a[i]! : b[j]!;
    const end = fromA ? a[i + 1]! : b[j + 1]!;
    if (fromA) i += 2;
    else j += 2;
    appendSpan(out, start, end);
  }
  return out;
}

/** Add an interval that starts no earlier than the last one of the list; touching intervals merge. */
export function appendSpan(out: number[], start: number, end: number): void {
  if (start >= end) return;
  if (out.length > 0 && start <= out[out.length - 1]!) out[out.length - 1] = Math.max(out[out.length - 1]!, end);
  else out.push(start, end);
}

/** Positions of [from, to) outside the set. */
export function complementSpans(a: Spans, from: number, to: number): Spans {
  const out: number[] = [];
  let at = from;
  for (let i = 0; i < a.length; i += 2) {
    if (a[i]! > at) out.push(at, Math.min(a[i]!, to));
    at = Math.max(at, a[i + 1]!);
  }
  if (at < to) out.push(at, to);
  return out;
}

/**
 * Coverage in tokens as runs of tiles.
 * @param origin position of row 0 of the tiled axis
 * @param wholeTile whether the tile that asks lies inside the lengths; a tail has no full partner
 */
export function tilesOf(coverage: Coverage, tile: number, origin: number, wholeTile: boolean): Run[] {
  const full: number[] = [];
  const some: number[] = [];
  for (let i = 0; i < coverage.some.length; i += 2) {
    appendSpan(some, Math.floor((coverage.some[i]! - origin) / tile), Math.ceil((coverage.some[i + 1]! - origin) / tile));
  }
  if (wholeTile) {
    for (let i = 0; i < coverage.all.length; i += 2) {
      appendSpan(full, Math.ceil((coverage.all[i]! - origin) / tile), Math.floor((coverage.all[i + 1]! - origin) / tile));
    }
  }
  const runs: Run[] = [];
  let f = 0;
  for (let i = 0; i < some.length; i += 2) {
    let at = some[i]!;
    const end = some[i + 1]!;
    for (; f < full.length && full[f]! < end; f += 2) {
      if (full[f]! > at) runs.push([at, full[f]!, 'partial']);
      runs.push([full[f]!, full[f + 1]!, 'full']);
      at = full[f + 1]!;
    }
    if (at < end) runs.push([at, end, 'partial']);
  }
  return runs;
}
