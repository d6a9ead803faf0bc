import { vjp } from '../autodiff/grad.js';
import type { Tier } from '../device/capabilities.js';
import { tiers } from '../device/capabilities.js';
import type { Device, KernelTrace } from '../device/device.js';
import { type DType, isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import type { SafetensorsDType } from '../io/safetensors-header.js';
import { tensor } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import { compare, shareText } from './compare.js';
import type { CompareRule, Comparison, Values } from './compare.js';
import { hasGradients } from './golden-case.js';
import type { GoldenCase, GoldenTensor } from './golden-case.js';

/** What a mapped op gives back: each output by name and, for a case with gradients, `grad_<input>` for each one stored. */
export type GoldenResults = Readonly<Record<string, Tensor | Values>>;

/** How one op of the golden cases is run and held against them. */
export interface GoldenOp {
  /**
   * Runs the case on the device. The runner reads the results and frees their tensors; what else was made belongs to `run`
   * ({@link forwardAndGradients} frees it).
   */
  run(golden: GoldenCase, device: Device): GoldenResults | Promise<GoldenResults>;
  /** One rule an output; gradients are compared by `error`. */
  readonly compare: Readonly<Record<string, CompareRule>>;
  /** False where an op has no gradients: a case that stores some is then unsupported. Default true. */
  readonly gradients?: boolean;
}

/** The default export of a package's `test/golden.ts`: op name to how it is run. */
export type GoldenMapping = Readonly<Record<string, GoldenOp>>;

/** What became of one case. */
export interface GoldenReport {
  /** `fell-back`: right, but a kernel ran at a lower tier than the one asked for although it has a form for it. */
  readonly status: 'pass' | 'fail' | 'unsupported' | 'fell-back';
  readonly op: string;
  readonly file: string;
  /** Largest error as a share of its tolerance. */
  readonly share: number;
  /** Of the device that ran the case. */
  readonly tier: Tier;
  /** The kernels that ran, each once, with the tier whose form ran. */
  readonly kernels: readonly KernelTrace[];
  /** By output and gradient name. */
  readonly comparisons: Readonly<Record<string, Comparison>>;
  /** Why it is no pass. */
  readonly message?: string;
}

/**
 * Runs one case through the mapping of its op and compares everything that the case stores.
 * @param tier when given, a kernel that has a form for this tier and ran at a lower one makes the case `fell-back`
 */
export async function runGoldenCase(golden: GoldenCase, mapping: GoldenMapping, device: Device, tier?: Tier): Promise<GoldenReport> {
  const base = { op: golden.op, file: golden.file, tier: device.tier, share: 0, kernels: [], comparisons: {} };
  const op = Object.hasOwn(mapping, golden.op) ? mapping[golden.op] : undefined;
  if (!op) {
    const family = golden.op.split('/')[0];
    const message = `golden: ${golden.op} is not mapped by any package here; add it to packages/${family}/test/golden.ts or pass --only`;
    return { ...base, status: 'unsupported', message };
  }
  if (op.gradients === false && hasGradients(golden)) {
    const message = `golden: ${golden.op} is mapped without gradients and the case stores some; return them and drop gradients: false`;
    return { ...base, status: 'unsupported', message };
  }
  const stop = device.trace();
  let traces: KernelTrace[] = [];
  let results: Map<string, Values>;
  try {
    const given = await op.run(golden, device);
    // Reading may run kernels of its own (a strided view is copied): those are not the technique's.
    traces = stop();
    results = await readResults(given);
  } catch (error) {
    traces = traces.length > 0 ? traces : stop();
    const message = `golden: ${golden.op} threw: ${error instanceof Error ? error.message : String(error)}`;
    return { ...base, status: 'fail', share: Infinity, kernels: distinct(traces), message };
  }
  const kernels = distinct(traces);
  const comparisons = compareAll(golden, op, results);
  const failed = Object.values(comparisons).find(({ pass }) => !pass);
  const share = Object.values(comparisons).reduce((worst, one) => Math.max(worst, one.share), 0);
  if (failed) return { ...base, kernels, comparisons, share, status: 'fail', message: `golden: ${golden.op} ${failed.failure}` };
  const behind = tier && kernels.find((kernel) => fellBack(kernel, tier));
  if (behind) {
    const message = `golden: ${golden.op} ran kernel ${behind.kernel} at tier ${behind.tier}; it has forms for ${behind.forms.join(', ')} and ${tier} was asked for`;
    return { ...base, kernels, comparisons, share, status: 'fell-back', message };
  }
  return { ...base, kernels, comparisons, share, status: 'pass' };
}

/**
 * The line of a case: `pass|fail|unsupported|fell-back <op> <file> <largest error as a share of its tolerance> <tier> <kernel@tier,...>`.
 * @param report of the case
 */
export function goldenLine({ status, op, file, share, tier, kernels }: GoldenReport): string {
  const ran = status === 'unsupported' ? '-' : kernels.map((kernel) => `${kernel.kernel}@${kernel.tier}`).join(',') || '-';
  return [status, op, file, status === 'unsupported' ? '-' : shareText(share), tier, ran].join(' ');
}

/** The inputs of a case on a device, by name. */
export interface GoldenInputs {
  /** @throws HeedError INVALID_FILE when the case has no such input */
  get(name: string): Tensor;
  /** An input that a case may leave out. */
  find(name: string): Tensor | undefined;
}

/**
 * What most mappings need: puts a case's inputs on the device, runs `forward`, and, when the case stores gradients, goes back
 * from the stored cotangents by autodiff. Everything but the results is freed.
 * @param forward gives the outputs by name, as tensors
 * @returns the outputs and `grad_<input>` of each stored gradient
 */
export function forwardAndGradients(
  golden: GoldenCase,
  device: Device,
  forward: (inputs: GoldenInputs) => Readonly<Record<string, Tensor>>,
): Record<string, Tensor> {
  return scope(() => {
    const inputs = new Map(Object.entries(golden.inputs).map(([name, stored]) => [name, goldenTensor(device, stored, name)]));
    const named: GoldenInputs = {
      get: (name) =>
        inputs.get(name) ??
        missing(`golden: ${golden.file}: ${golden.op} needs the input "${name}"; the case has ${[...inputs.keys()].join(', ')}`),
      find: (name) => inputs.get(name),
    };
    if (!hasGradients(golden)) return { ...forward(named) };
    const wanted = Object.keys(golden.gradients);
    let outputNames: string[] = [];
    // The cotangents' order is that of the outputs, which only a run tells: it is filled in while the outputs are made.
    const cotangents: (Tensor | null)[] = [];
    const { outputs, grads } = vjp(
      () => {
        const made = forward(named);
        outputNames = Object.keys(made);
        for (const [name, out] of Object.entries(made)) {
          const stored = golden.cotangents[name];
          cotangents.push(stored && isFloat(out.dtype) ? goldenTensor(device, stored, `cotangent_${name}`, out.dtype).keep() : null);
        }
        return Object.values(made);
      },
      wanted.map((name) => named.get(name)),
      cotangents,
    );
    for (const cotangent of cotangents) cotangent?.dispose();
    return {
      ...Object.fromEntries(outputNames.map((name, i) => [name, outputs[i] as Tensor])),
      ...Object.fromEntries(wanted.map((name, i) => [`grad_${name}`, grads[i] as Tensor])),
    };
  });
}

const deviceDTypes: Partial<Record<SafetensorsDType, DType>> = {
  F64: 'f32',
  F32: 'f32',
  BF16: 'f32',
  F16: 'f16',
  U32: 'u32',
  U8: 'u8',
  BOOL: 'u8',
};

/** A stored tensor on a device: f64 and bf16 become f32, the signed and 64-bit integers i32, booleans u8; `dtype` overrules. */
export function goldenTensor(device: Device, stored: GoldenTensor, label?: string, dtype?: DType): Tensor {
  return tensor(device, stored.values, stored.shape, {
    dtype: dtype ?? deviceDTypes[stored.dtype] ?? 'i32',
    ...(label !== undefined && { label }),
  });
}

function compareAll(golden: GoldenCase, op: GoldenOp, results: ReadonlyMap<string, Values>): Record<string, Comparison> {
  const comparisons: Record<string, Comparison> = {};
  const check = (name: string, expected: GoldenTensor, rule: CompareRule | undefined): void => {
    const got = results.get(name);
    if (got === undefined || rule === undefined) {
      const failure =
        rule === undefined ? `${name}: the mapping states no compare rule for this output` : `${name}: the mapping did not return it`;
      comparisons[name] = { pass: false, share: Infinity, errorRatio: Infinity, failure };
    } else comparisons[name] = compare(name, got, expected, rule, golden.tolerance);
  };
  for (const [name, expected] of Object.entries(golden.outputs)) check(name, expected, op.compare[name]);
  for (const [name, expected] of Object.entries(golden.gradients)) check(`grad_${name}`, expected, 'error');
  return comparisons;
}

async function readResults(results: GoldenResults): Promise<Map<string, Values>> {
  const read = new Map<string, Values>();
  const tensors = Object.values(results).filter((result) => result instanceof Tensor);
  try {
    for (const [name, result] of Object.entries(results)) {
      read.set(name, result instanceof Tensor ? { shape: result.shape, values: await result.read() } : result);
    }
    return read;
  } finally {
    for (const result of tensors) result.dispose();
  }
}

/** True when a better form than the one that ran exists at or below the tier asked for. */
function fellBack({ tier: ran, forms }: KernelTrace, asked: Tier): boolean {
  return forms.some((form) => tiers.indexOf(form) > tiers.indexOf(ran) && tiers.indexOf(form) <= tiers.indexOf(asked));
}

function distinct(traces: readonly KernelTrace[]): KernelTrace[] {
  return [...new Map(traces.map((trace) => [`${trace.kernel}@${trace.tier}`, trace])).values()];
}

function missing(message: string): never {
  throw new HeedError('INVALID_FILE', message);
}
