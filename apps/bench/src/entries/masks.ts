import type { Device } from '@heed/core';
import { planAttention, tileRuns } from '@heed/core/attention';
import type { Entry, Family, MaskFigures, Pass } from '../entry.js';
import { type NamedMask, namedMasks } from '../masks.js';
import { attentionEntry } from './attention.js';

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: 'f16' | 'f32';
  readonly pass: Pass;
}

/** Visible pairs of all heads together, counted exactly. */
export function pairsOf({ mask }: NamedMask, tokens: number, heads: number): number {
  const lengths = { queries: tokens, keys: tokens };
  if (!mask.perHead) return heads * mask.area(lengths);
  return Array.from({ length: heads }, (_, head) => mask.area(lengths, head)).reduce((sum, area) => sum + area, 0);
}

/** Share of all tiles that a mask lists: what the kernel walks, whatever it then hides inside partial tiles. */
export function listedShare({ mask }: NamedMask, tokens: number, heads: number, tiles: { query: number; key: number }): number {
  const { listedPairs, storedHeads } = tileRuns(mask, { queries: tokens, keys: tokens, heads, batch: 1, tiles });
  const all = Math.ceil(tokens / tiles.query) * Math.ceil(tokens / tiles.key) * tiles.query * tiles.key;
  return listedPairs / storedHeads / all;
}

function masked(named: NamedMask, setting: Setting, device: Pick<Device, 'capabilities' | 'isSoftware'>): Entry {
  const { tokens, heads, headDim, dtype, pass } = setting;
  const shape = { batch: 1, queries: tokens, keys: tokens, heads, kvHeads: heads, headDim, valueDim: headDim, halves: dtype === 'f16' };
  const { forward } = planAttention(shape, device.capabilities, { software: device.isSoftware });
  const tile = forward.fragments ?? forward.tile;
  const pairs = pairsOf(named, tokens, heads);
  const figures: MaskFigures = {
    name: named.name,
    area: pairs / heads,
    density: pairs / heads / tokens ** 2,
    listed: listedShare(named, tokens, heads, { query: tile.rows, key: tile.columns }),
  };
  const everything = Array.from({ length: tokens }, (_, key) => key);
  return attentionEntry({
    id: `mask/${named.name}/${dtype}/d${headDim}/${tokens}/${pass}`,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    dtype,
    pass,
    pairs,
    mask: figures,
    shape: { mask: named.number, ...named.parameters },
    visible: (head, query) => everything.filter((key) => named.mask.visible(0, head, query, key)),
    options: { mask: named.mask },
  });
}

/** The 14 masks of LongCA-bench. */
export const maskFamily =
  (device: Pick<Device, 'capabilities' | 'isSoftware'>): Family =>
  ({ suite, software, sizes }) => {
    if (suite !== 'masks') return [];
    const heads = software ? 2 : 16;
    const setting = { heads, headDim: 64, dtype: software ? 'f32' : 'f16' } as const;
    return (sizes ?? (software ? [512] : [16384])).flatMap((tokens) => {
      const masks = namedMasks(tokens, heads);
      const passes: readonly Pass[] = software ? ['forward'] : ['forward', 'backward'];
      return passes.flatMap((pass) => masks.map((named) => masked(named, { ...setting, tokens, pass }, device)));
    });
  };
