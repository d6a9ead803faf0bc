import { parseArgs } from 'node:util';
import { tiers, type Tier } from '@heed/core';
import { kernels } from './kernels.js';

/** What to measure. */
export interface BenchOptions {
  readonly kernels: readonly string[];
  readonly tokens: readonly number[];
  readonly heads: number;
  readonly headDim: number;
  readonly window: number;
  readonly dtype: 'f32' | 'f16';
  readonly repeats: number;
  readonly tier: Tier | undefined;
  /** File of the record; none is written without it. */
  readonly json: string | undefined;
}

/** A request that makes no sense, with a sentence for the person who made it. */
export class UsageError extends Error {}

export const usage: string = `npm run bench -- [options]

  --kernels a,b     ${Object.keys(kernels).join(', ')} (default: all)
  --tokens a,b      lengths (default 512,2048; on a real GPU 4096,16384,65536)
  --heads N         heads (default 2; on a real GPU 16)
  --head-dim N      head dimension (default 64)
  --window N        window of the windowed kernels, in tokens (default 256)
  --dtype f32|f16   (default f32; on a real GPU f16)
  --repeats N       timed runs of each, of which the median counts (default 5)
  --tier T          ${tiers.join(', ')} (default: the best of the device)
  --json FILE       writes the record to FILE`;

const defaults = {
  software: { tokens: '512,2048', heads: '2', dtype: 'f32' },
  hardware: { tokens: '4096,16384,65536', heads: '16', dtype: 'f16' },
} as const;

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new UsageError(`bench: --${name} is "${text}"; give an integer of 1 or more`);
  return value;
}

/** Reads the arguments; what is left open is filled in once the device is known. @throws UsageError for arguments that make no sense */
export function readOptions(args: readonly string[]): (device: { readonly isSoftware: boolean }) => BenchOptions {
  const { values } = parse(args);
  const names = values.kernels?.split(',') ?? Object.keys(kernels);
  const unknown = names.find((name) => !(name in kernels));
  if (unknown !== undefined) throw new UsageError(`bench: there is no kernel "${unknown}"; use ${Object.keys(kernels).join(', ')}`);
  const tier = tiers.find((name) => name === values.tier);
  if (values.tier !== undefined && !tier) throw new UsageError(`bench: --tier is "${values.tier}"; use one of ${tiers.join(', ')}`);
  if (values.dtype !== undefined && values.dtype !== 'f32' && values.dtype !== 'f16')
    throw new UsageError(`bench: --dtype is "${values.dtype}"; use f32 or f16`);
  values.tokens?.split(',').forEach((text) => positive('tokens', text));
  return ({ isSoftware }) => {
    const open = isSoftware ? defaults.software : defaults.hardware;
    return {
      kernels: names,
      tokens: (values.tokens ?? open.tokens).split(',').map((text) => positive('tokens', text)),
      heads: positive('heads', values.heads ?? open.heads),
      headDim: positive('head-dim', values['head-dim'] ?? '64'),
      window: positive('window', values.window ?? '256'),
      dtype: values.dtype === 'f16' || values.dtype === 'f32' ? values.dtype : open.dtype,
      repeats: positive('repeats', values.repeats ?? '5'),
      tier,
      json: values.json,
    };
  };
}

function parse(args: readonly string[]): {
  values: Partial<Record<'kernels' | 'tokens' | 'heads' | 'head-dim' | 'window' | 'dtype' | 'repeats' | 'tier' | 'json', string>>;
} {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      args: [...args],
      options: {
        kernels: text,
        tokens: text,
        heads: text,
        'head-dim': text,
        window: text,
        dtype: text,
        repeats: text,
        tier: text,
        json: text,
      },
    });
  } catch (error) {
    throw new UsageError(`bench: ${error instanceof Error ? error.message : String(error)}`);
  }
}
