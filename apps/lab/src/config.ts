import { readFile } from 'node:fs/promises';
import { z } from 'zod';

/** The mixers that a configuration can name. */
export const MIXERS = [
  'softmax',
  'lightning2',
  'lla',
  'nprf',
  'neighborhood',
  'zeta',
  'linear',
  'lightning',
  'based',
  'titans',
  'titans-mag',
  'titans-mal',
  'titans-mac',
  'lawcat',
  'transnormerllm',
  'transnormer',
  'nalaformer',
] as const;
export type MixerName = (typeof MIXERS)[number];

/** A byte-level language model: embedding, `layers` pre-norm blocks of mixer and gated MLP, norm, projection to 256 logits. */
export interface ModelConfig {
  readonly mixer: MixerName;
  /** Width of the residual stream. */
  readonly dim: number;
  readonly layers: number;
  readonly heads: number;
  /** Heads of keys and values; must divide `heads`. Default: `heads`. */
  readonly kvHeads?: number;
  /** Default: dim / heads. */
  readonly headDim?: number;
  /** Hidden width of the gated MLP. */
  readonly mlp: number;
  /** Keys that a query of the neighborhood mixer sees, its own included. Only that mixer takes it. */
  readonly window?: number;
  /** Base of the rotary angles. Only softmax and neighborhood take it. Default: 10,000. */
  readonly ropeBase?: number;
  /** Further options, passed to the mixer as they are. */
  readonly mixerOptions?: Readonly<Record<string, number | boolean | string>>;
}

/** How it is trained. */
export interface TrainingConfig {
  readonly steps: number;
  /** Sequences a step. */
  readonly batch: number;
  /** Tokens a sequence. */
  readonly context: number;
  /** Peak of the schedule. */
  readonly learningRate: number;
  /** Steps of linear warm-up. */
  readonly warmup: number;
  readonly schedule: 'cosine' | 'constant';
  /** Share of the peak that a cosine schedule ends at. */
  readonly finalShare: number;
  readonly weightDecay: number;
  /** Largest global norm of the gradient. */
  readonly clip: number;
  readonly seed: number;
  /** f16 keeps master weights, states and norms in f32 and scales the loss. */
  readonly precision: 'f16' | 'f32';
  /** Steps between two evaluations on the held-out text. */
  readonly evaluateEvery: number;
  /** Tokens that an evaluation reads. */
  readonly evaluateTokens: number;
  readonly checkpointEvery: number;
}

/** What it is trained on. Paths are relative to the folder of apps/lab. */
export interface CorpusConfig {
  /** Training bytes; `train.json` beside them names their parts. */
  readonly train: string;
  /** Text of the book whose last chapters are held out. */
  readonly book: string;
  /** Share of the sequences drawn from each part; parts not named share the rest by their length. Default: by length. */
  readonly shares?: Readonly<Record<string, number>>;
}

/** A whole configuration file. */
export interface LabConfig {
  readonly name: string;
  readonly model: ModelConfig;
  readonly training: TrainingConfig;
  readonly corpus: CorpusConfig;
}

const count = z.int().min(1);
const share = z.number().min(0).max(1);

const modelSchema = z.strictObject({
  mixer: z.enum(MIXERS),
  dim: count,
  layers: count,
  heads: count,
  kvHeads: count.optional(),
  headDim: count.optional(),
  mlp: count,
  window: count.optional(),
  ropeBase: z.number().min(1).optional(),
  mixerOptions: z.record(z.string(), z.union([z.number(), z.boolean(), z.string()])).optional(),
});

const trainingSchema = z.strictObject({
  steps: count,
  batch: count,
  context: count.min(2),
  learningRate: z.number().positive(),
  warmup: z.int().min(0),
  schedule: z.enum(['cosine', 'constant']),
  finalShare: share,
  weightDecay: z.number().min(0),
  clip: z.number().positive(),
  seed: z.int().min(0).max(0xffff_ffff),
  precision: z.enum(['f16', 'f32']),
  evaluateEvery: count,
  evaluateTokens: count.min(2),
  checkpointEvery: count,
});

const corpusSchema = z.strictObject({
  train: z.string().min(1),
  book: z.string().min(1),
  shares: z.record(z.string(), share).optional(),
});

const schema = z
  .strictObject({
    name: z.string().regex(/^[a-z0-9-]+$/, 'must be lower-case letters, digits and hyphens'),
    model: modelSchema,
    training: trainingSchema,
    corpus: corpusSchema,
  })
  .superRefine(({ model, training, corpus }, context) => {
    const reject = (path: string[], message: string): void => void context.addIssue({ code: 'custom', path, message });
    if (model.headDim === undefined && model.dim % model.heads !== 0) {
      reject(['model', 'heads'], `${model.heads} heads do not divide dim ${model.dim}; choose a divisor or give headDim`);
    }
    if (model.kvHeads !== undefined && model.heads % model.kvHeads !== 0) {
      reject(['model', 'kvHeads'], `${model.kvHeads} must divide the ${model.heads} heads`);
    }
    if (model.mixer === 'neighborhood' && model.window === undefined) reject(['model', 'window'], 'the neighborhood mixer needs it');
    if (model.mixer !== 'neighborhood' && model.window !== undefined)
      reject(['model', 'window'], `the ${model.mixer} mixer has no window; remove it`);
    if (model.ropeBase !== undefined && model.mixer !== 'softmax' && model.mixer !== 'neighborhood') {
      reject(['model', 'ropeBase'], `the ${model.mixer} mixer has no rotary positions; remove it`);
    }
    if (training.warmup >= training.steps)
      reject(['training', 'warmup'], `${training.warmup} steps of warm-up leave none of ${training.steps} steps`);
    const sum = Object.values(corpus.shares ?? {}).reduce((total, value) => total + value, 0);
    if (sum > 1) reject(['corpus', 'shares'], `they sum to ${sum}; at most 1`);
  });

/**
 * Checks the text of a configuration file.
 * @param where name for messages, such as the file's path
 * @throws Error whose message names each wrong field, what was given and what was expected
 */
export function parseConfig(text: string, where: string): LabConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Error(`${where}: not JSON: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  const result = schema.safeParse(json, { reportInput: true });
  if (!result.success) {
    throw new Error(result.error.issues.map((issue) => describeIssue(issue, where)).join('\n'));
  }
  return withoutUndefined(result.data);
}

/** Reads and checks a configuration file. */
export async function readConfig(path: string): Promise<LabConfig> {
  return parseConfig(await readFile(path, 'utf8'), path);
}

/** Head dimension of a model, given or derived. */
export function headDimension(model: ModelConfig): number {
  return model.headDim ?? model.dim / model.heads;
}

/** `configs/zeta.json: training.steps is 0: Too small: expected number to be >=1`. */
function describeIssue({ path, input, message, code }: z.core.$ZodIssue, where: string): string {
  const field = path.length === 0 ? 'the file' : path.join('.');
  const given = code === 'custom' || code === 'unrecognized_keys' ? '' : ` is ${input === undefined ? 'missing' : JSON.stringify(input)}`;
  return `${where}: ${field}${given}: ${message}`;
}

/** zod types an optional field as possibly undefined; the parsed JSON never holds such a value. */
function withoutUndefined(config: z.infer<typeof schema>): LabConfig {
  return config as LabConfig;
}
