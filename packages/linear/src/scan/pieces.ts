import type { Tensor } from '@heed/core';

/** Part of a problem: some batch entries and some tokens of them. */
export interface Piece {
  batchFirst: number;
  batch: number;
  tokenFirst: number;
  tokens: number;
}

/** How much of a buffer an operand [batch, tokens, ...] spans. */
export interface Span {
  /** From the first to the last element. */
  bytes: number;
  /** From one token to the next. */
  tokenBytes: number;
}

// Windows begin at multiples of 256 bytes and end at multiples of 256.
const slack = 512;
// Pieces begin at multiples of this, so that views keep their alignment.
const granule = 64;

/**
 * Cuts a problem whose operands are larger than a binding: batch entries by themselves, tokens as many as fit. The state is
 * handed from piece to piece. One list a run of batch entries, tokens in order.
 */
export function planPieces(batch: number, tokens: number, spans: readonly Span[], bindingBytes: number): Piece[][] {
  if (spans.every(({ bytes }) => bytes <= bindingBytes)) return [[{ batchFirst: 0, batch, tokenFirst: 0, tokens }]];
  const tokenBytes = Math.max(...spans.map((span) => span.tokenBytes));
  const most = Math.max(granule, Math.floor((bindingBytes - slack) / tokenBytes / granule) * granule);
  return Array.from({ length: batch }, (_, batchFirst) =>
    Array.from({ length: Math.ceil(tokens / most) }, (_, i) => ({
      batchFirst,
      batch: 1,
      tokenFirst: i * most,
      tokens: Math.min(most, tokens - i * most),
    })),
  );
}

export function spanOf(x: Tensor): Span {
  const size = x.dtype === 'f16' ? 2 : 4;
  return { bytes: x.extent * size, tokenBytes: (x.strides[1] ?? 0) * size };
}

/** The view of x, [batch, tokens, ...], that a piece is about. */
export function pieceOf(x: Tensor, { batchFirst, batch, tokenFirst, tokens }: Piece): Tensor {
  const offset = x.offset + batchFirst * (x.strides[0] ?? 0) + tokenFirst * (x.strides[1] ?? 0);
  return x.view({ shape: [batch, tokens, ...x.shape.slice(2)], offset });
}

/** The batch entries of x, [batch, ...], that a piece is about. */
export function entriesOf(x: Tensor, { batchFirst, batch }: Piece): Tensor {
  return x.view({ shape: [batch, ...x.shape.slice(1)], offset: x.offset + batchFirst * (x.strides[0] ?? 0) });
}
