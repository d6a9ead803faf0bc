// Random sequences of what one may do with a cache, against plain arrays.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createKvCache } from '../src/cache/index.js';
import { RandomStream } from '../src/random/stream.js';
import { type AttendOptions, type Device, type PagedKvCache, scope, tensor } from '../src/index.js';
import { emptySequence, modelAttend, type ModelSequence, type ModelSizes, push, randomTokens } from './kv-model.js';
import { devices, expectClose, testedTiers } from './ops-support.js';

const open = devices();
const capacity = 40;
const maxBatch = 3;

interface Config {
  sizes: ModelSizes;
  dtype: 'f32' | 'f16';
  pageTokens: number;
}

interface Model {
  sequences: ModelSequence[];
  seen: number;
  padded: number;
  random: RandomStream;
  config: Config;
}

interface Real {
  device: Device;
  cache: PagedKvCache;
}

type Command = fc.AsyncCommand<Model, Real>;

function append(n: number, share: readonly number[] | undefined): Command {
  return {
    toString: () => `append(${n}${share ? `, padded by ${share}` : ''})`,
    check: ({ seen }) => seen + n <= capacity,
    async run(model, { device, cache }) {
      const { sizes, dtype } = model.config;
      const batch = model.sequences.length;
      const lengths = share && Int32Array.from({ length: batch }, (_, b) => Math.floor((share[b] ?? 0) * (n + 1)));
      const given = model.sequences.map(() => randomTokens(model.random, n, sizes, dtype));
      const heads = sizes.heads;
      const q = Array.from(model.random.normal(batch * n * heads * sizes.headDim), Math.fround);
      const out = scope(() => {
        const from = lengths ? { lengths: tensor(device, lengths) } : {};
        cache.append(
          tensor(
            device,
            given.flatMap((g) => g.k),
            [batch, n, sizes.kvHeads, sizes.headDim],
            { dtype },
          ),
          tensor(
            device,
            given.flatMap((g) => g.v),
            [batch, n, sizes.kvHeads, sizes.valueDim],
            { dtype },
          ),
          from,
        );
        return cache.attend(tensor(device, q, [batch, n, heads, sizes.headDim]));
      });
      const expected = model.sequences.flatMap((sequence, b) => {
        const valid = lengths?.[b] ?? n;
        push(sequence, given[b]!.rows.slice(0, valid));
        const rest = new Array<number>((n - valid) * heads * sizes.valueDim).fill(0);
        return [...modelAttend(sequence, q.slice(b * n * heads * sizes.headDim), valid, sizes), ...rest];
      });
      model.seen += n;
      if (lengths) model.padded = model.seen;
      expectClose(await out.read(), expected, 2e-4, 2e-4, 'the appended tokens');
      out.dispose();
      expect(cache.tokens).toBe(model.seen);
    },
  };
}

function attend(n: number, options: AttendOptions): Command {
  return {
    toString: () => `attend(${n}, ${JSON.stringify(options)})`,
    check: ({ seen, padded, sequences }) => n <= seen - padded && sequences.every((s) => s[0]!.length > 0),
    async run(model, { device, cache }) {
      const { sizes } = model.config;
      const batch = model.sequences.length;
      const q = Array.from(model.random.normal(batch * n * sizes.heads * sizes.headDim), Math.fround);
      const out = scope(() => cache.attend(tensor(device, q, [batch, n, sizes.heads, sizes.headDim]), options));
      const expected = model.sequences.flatMap((sequence, b) =>
        modelAttend(sequence, q.slice(b * n * sizes.heads * sizes.headDim), n, sizes, options),
      );
      expectClose(await out.read(), expected, 2e-4, 2e-4, 'attend');
      out.dispose();
    },
  };
}

function truncate(back: number): Command {
  return {
    toString: () => `truncate(-${back})`,
    check: ({ seen, padded }) => seen - back >= padded,
    async run(model, { cache }) {
      cache.truncate(model.seen - back);
      model.seen -= back;
      for (const sequence of model.sequences) for (const head of sequence) head.length -= back;
    },
  };
}

function select(chosen: readonly number[]): Command {
  return {
    toString: () => `select(${chosen})`,
    check: () => true,
    async run(model, { device, cache }) {
      const entries = chosen.map((x) => Math.floor(x * model.sequences.length));
      scope(() => cache.select(tensor(device, Uint32Array.from(entries))));
      model.sequences = entries.map((b) => model.sequences[b]!.map((head) => [...head]));
      expect(cache.batch).toBe(entries.length);
    },
  };
}

const clear: Command = {
  toString: () => 'truncate(0)',
  check: () => true,
  async run(model, { cache }) {
    cache.truncate(0);
    model.seen = 0;
    model.padded = 0;
    model.sequences = model.sequences.map(() => emptySequence(model.config.sizes));
  },
};

const moveOver: Command = {
  toString: () => 'snapshot, restore into another cache',
  check: () => true,
  async run(model, real) {
    const snapshot = await real.cache.snapshot();
    real.cache.dispose();
    real.cache = makeCache(real.device, model.config);
    real.cache.restore(snapshot);
    expect(real.cache.tokens).toBe(model.seen);
  },
};

const rows: Command = {
  toString: () => 'rows',
  check: ({ seen }) => seen > 0,
  async run({ sequences, seen, config }, { cache }) {
    const { sizes } = config;
    const { k, v } = scope(() => cache.rows());
    const flat = (side: 'k' | 'v', dim: number): number[] =>
      sequences.flatMap((sequence) =>
        Array.from({ length: seen }, (_, t) => sequence.flatMap((head) => head[t]?.[side] ?? new Array<number>(dim).fill(0))).flat(),
      );
    expect([...(await k.read())]).toEqual(flat('k', sizes.headDim));
    expect([...(await v.read())]).toEqual(flat('v', sizes.valueDim));
    k.dispose();
    v.dispose();
  },
};

function makeCache(device: Device, { sizes, dtype, pageTokens }: Config): PagedKvCache {
  return createKvCache(device, { batch: maxBatch, ...sizes, capacity, dtype, pageTokens });
}

const share = fc.integer({ min: 0, max: 99 }).map((x) => x / 100);
const commands: fc.Arbitrary<Command>[] = [
  fc.integer({ min: 1, max: 12 }).map((n) => append(n, undefined)),
  fc.constant(append(1, undefined)),
  fc.tuple(fc.integer({ min: 1, max: 9 }), fc.array(share, { minLength: maxBatch, maxLength: maxBatch })).map(([n, s]) => append(n, s)),
  fc
    .record(
      {
        n: fc.integer({ min: 1, max: 6 }),
        window: fc.integer({ min: 1, max: 20 }),
        sinkTokens: fc.integer({ min: 0, max: 4 }),
        softcap: fc.constant(3),
      },
      { requiredKeys: ['n'] },
    )
    .map(({ n, ...options }) => attend(n, options)),
  fc.integer({ min: 1, max: 9 }).map(truncate),
  fc.array(share, { minLength: 1, maxLength: maxBatch }).map(select),
  fc.constant(clear),
  fc.constant(moveOver),
  fc.constant(rows),
];

const configs: [string, Config][] = [
  ['grouped heads in f32', { sizes: { kvHeads: 2, heads: 4, headDim: 8, valueDim: 8 }, dtype: 'f32', pageTokens: 4 }],
  ['odd head dimensions in f16', { sizes: { kvHeads: 1, heads: 3, headDim: 5, valueDim: 7 }, dtype: 'f16', pageTokens: 7 }],
];

test.each(testedTiers.flatMap((tier) => configs.map(([name, config]) => [tier, name, config] as const)))(
  'whatever is done with a cache, it holds what plain arrays hold: %s, %s',
  async (tier, _, config) => {
    const device = open[tier];
    await fc.assert(
      fc.asyncProperty(fc.commands(commands, { maxCommands: 25 }), async (run) => {
        const real: Real = { device, cache: makeCache(device, config) };
        const model: Model = {
          sequences: Array.from({ length: maxBatch }, () => emptySequence(config.sizes)),
          seen: 0,
          padded: 0,
          random: new RandomStream(7, 'commands'),
          config,
        };
        try {
          await fc.asyncModelRun(() => ({ model, real }), run);
        } finally {
          real.cache.dispose();
        }
      }),
      { numRuns: 30, seed: 20, endOnFailure: true },
    );
  },
);
