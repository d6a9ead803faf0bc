import { HeedError } from '../errors.js';
import { causal, full, type Mask, sinks, slidingWindow } from './mask/index.js';
import type { AttentionOptions } from './options.js';
import { type Band, bandOf, unbounded } from './problem.js';

/** What decides which keys a row sees: a band in closed form, or a mask with its runs. */
export interface Visibility {
  band: Band;
  mask: Mask | undefined;
}

const open: Band = { left: unbounded, right: unbounded, prefix: 0 };

/** Closed forms where there is one; else one mask of everything that the options say. */
export function visibilityOf(options: AttentionOptions): Visibility {
  const band = bandOf(options);
  const { mask } = options;
  if (!mask) return { band, mask: undefined };
  const own = closedForm(mask);
  if (own && band.prefix === 0)
    return { band: { left: Math.min(own.left, band.left), right: Math.min(own.right, band.right), prefix: 0 }, mask: undefined };
  return { band: open, mask: combined(mask, options) };
}

let closedForms: Map<string, (mask: Mask) => Band> | undefined;

/** The band of a mask that is one, by the structure of its predicate. */
function closedForm(mask: Mask): Band | undefined {
  const value =
    (name: string) =>
    (m: Mask): number =>
      m.uniforms[name] ?? 0;
  closedForms ??= new Map<string, (m: Mask) => Band>([
    [full().key, () => open],
    [causal().key, () => ({ left: unbounded, right: 0, prefix: 0 })],
    [causal({ offset: 0 }).key, (m) => ({ left: unbounded, right: value('causalOffset')(m), prefix: 0 })],
    [slidingWindow({ window: 2, causal: true }).key, (m) => ({ left: value('windowLeft')(m), right: 0, prefix: 0 })],
    [slidingWindow({ window: 2 }).key, (m) => ({ left: value('windowLeft')(m), right: value('windowRight')(m), prefix: 0 })],
  ]);
  return closedForms.get(mask.key)?.(mask);
}

const combinations = new WeakMap<Mask, Map<string, Mask>>();

/** A mask together with `causal`, `window` and `sinkTokens`; made once, since its runs are cached by the object. */
function combined(mask: Mask, { causal: oneSided = false, window, sinkTokens = 0 }: AttentionOptions): Mask {
  if (!oneSided && window === undefined) return mask;
  let made = combinations.get(mask);
  if (!made) combinations.set(mask, (made = new Map()));
  const key = `${oneSided} ${window} ${sinkTokens}`;
  let found = made.get(key);
  if (!found) {
    let other = window === undefined ? causal() : slidingWindow({ window, causal: oneSided });
    if (sinkTokens > 0) other = other.or(oneSided ? sinks(sinkTokens).and(causal()) : sinks(sinkTokens));
    made.set(key, (found = mask.and(other)));
  }
  return found;
}

/** @throws HeedError INVALID_ARGUMENT for sinkTokens where nothing is hidden from them */
export function checkVisibility(who: string, { sinkTokens, window, mask }: AttentionOptions): void {
  if (sinkTokens && window === undefined && !mask)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: sinkTokens is ${sinkTokens} without a window; every key is visible already, so leave it out or give a window`,
    );
}
