// Where decays are known, a workgroup needs no state from elsewhere: it makes the state before its tokens from those that still
// count, as a sweep that only updates the state, and then goes on with outputs. One dispatch, nothing written but outputs, and
// since heads that forget late need more of it they get shorter runs, so that all workgroups end together.
import type { Tensor } from '@heed/core';

/** Runs of the tokens of heads, one a workgroup. */
export interface TokenRanges {
  /** Number of runs. */
  count: number;
  /** Head, first token, token behind the last: three a run, heads in order and the runs of a head in order. */
  table: Uint32Array<ArrayBuffer>;
  /** Tokens of the longest sweep, those before a run counted by what they cost. */
  longest: number;
  /** Tokens before runs that are read again, of all runs. */
  lead: number;
}

export interface RangesShape {
  tokens: number;
  /** Log-decay a head. */
  decays: ArrayLike<number>;
  /** Workgroups that run at once, for one batch entry and column tile. */
  workgroups: number;
  /** Runs are multiples of so many tokens. */
  step: number;
  /** A token that only updates the state takes this part of the time of one with an output. */
  leadCost: number;
}

const known: WeakMap<Tensor, ArrayLike<number>> = new WeakMap();

/** Notes the numbers that a tensor of decays was made of. */
export function noteDecays(decay: Tensor, numbers: ArrayLike<number>): Tensor {
  known.set(decay, numbers);
  return decay;
}

/** The numbers that a tensor of decays was made of; undefined for one that the caller made. */
export function decaysOf(decay: Tensor): ArrayLike<number> | undefined {
  return known.get(decay);
}

/** Tokens before a run that count: what decayed below 2^-27 adds nothing in f32 (as `aliveOf` of the kernels). */
export function aliveTokens(decay: number): number {
  return Math.floor(Math.min(27 / Math.max(-Math.max(decay, -1e4) * Math.LOG2E, 1e-6), 1e9)) + 1;
}

/**
 * Cuts every head into runs such that all workgroups take as long. Undefined where heads forget too late: then the longest sweep would
 * be longer than `most` tokens.
 */
export function planRanges({ tokens, decays, workgroups, step, leadCost }: RangesShape, most: number): TokenRanges | undefined {
  const whole = (n: number): number => Math.floor(n / step) * step;
  const lead = Array.from(decays, (decay) => leadCost * aliveTokens(decay));
  /** Runs of a head when no sweep costs more than `cost`; nothing comes before the first. */
  const runs = (cost: number, h: number): number => {
    const own = whole(cost - (lead[h] as number));
    return tokens <= cost ? 1 : own > 0 ? 1 + Math.ceil((tokens - cost) / own) : Number.POSITIVE_INFINITY;
  };
  const fits = (steps: number): boolean => lead.reduce((sum, _, h) => sum + runs(steps * step, h), 0) <= workgroups;
  let [low, high] = [0, Math.floor(most / step)];
  if (!fits(high)) return undefined;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (fits(middle)) high = middle;
    else low = middle;
  }
  const cost = high * step;
  const table: number[] = [];
  let before = 0;
  for (let h = 0; h < lead.length; h++) {
    const own = whole(cost - (lead[h] as number));
    for (let first = 0; first < tokens;) {
      const end = Math.min(tokens, first + (first === 0 ? cost : own));
      table.push(h, first, end);
      before += Math.min(first, aliveTokens(decays[h] as number));
      first = end;
    }
  }
  return { count: table.length / 3, table: Uint32Array.from(table), longest: cost, lead: before };
}
