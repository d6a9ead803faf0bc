import type { AttentionCall } from './call.js';
import type { Mask, TileSizes } from './mask/index.js';

const counted = new WeakMap<Mask, Map<string, number>>();
const samples = 32;

/**
 * Pairs that the tiles listed by a call's mask hold, a head, from a sample of query tiles: what a tile of these sizes has to compute.
 * Undefined where there is no list made on the host.
 */
export function listedPairs(call: AttentionCall): ((tiles: TileSizes) => number) | undefined {
  const { mask } = call.visibility;
  const { queries, keys, heads, batch } = call.sizes;
  const { queryOffset: offset } = call;
  if (!mask || offset === undefined || call.selection) return undefined;
  return (tiles) => {
    let known = counted.get(mask);
    if (!known) counted.set(mask, (known = new Map()));
    const key = [queries, keys, offset, heads, batch, tiles.query, tiles.key].join();
    const found = known.get(key);
    if (found !== undefined) return found;
    const all = Math.ceil(queries / tiles.query);
    const count = Math.min(samples, all);
    let listed = 0;
    for (let i = 0; i < count; i++) {
      const tile = Math.floor(((i + 0.5) * all) / count);
      const runs = mask.runs(mask.perHead ? i % heads : 0, tile, tiles, { queries, keys, offset }, mask.perBatch ? i % batch : 0);
      for (const [first, end] of runs) listed += end - first;
    }
    const pairs = (listed / count) * all * tiles.query * tiles.key;
    known.set(key, pairs);
    return pairs;
  };
}
