import { HeedError } from '../errors.js';
import type { ByteSource } from '../io/bytes.js';
import { openSafetensors } from '../io/safetensors.js';
import type { SafetensorsFile } from '../io/safetensors.js';
import type { SafetensorsDType } from '../io/safetensors-header.js';
import type { F64Array } from '../float64.js';
import type { Tolerance } from './compare.js';

/** A tensor of a case: its values in float64 (exact for every dtype that cases use) and the dtype it was stored in. */
export interface GoldenTensor extends F64Array {
  readonly dtype: SafetensorsDType;
}

/** One golden case: what a paper's official code, or an independent float64 reference, gave for these inputs. */
export interface GoldenCase {
  /** File name without its folder. */
  readonly file: string;
  /** As `linear/lightning2.decode`. */
  readonly op: string;
  /** As the case's contract in the technique's page names them. */
  readonly params: Readonly<Record<string, unknown>>;
  readonly inputs: Readonly<Record<string, GoldenTensor>>;
  readonly outputs: Readonly<Record<string, GoldenTensor>>;
  /** By output name; empty when the case has no gradients. */
  readonly cotangents: Readonly<Record<string, GoldenTensor>>;
  /** By input name. */
  readonly gradients: Readonly<Record<string, GoldenTensor>>;
  readonly tolerance: Tolerance;
  readonly source: string;
}

/**
 * Reads a case from a safetensors file.
 * @param file its name, for messages
 * @throws HeedError INVALID_FILE when it is no safetensors file or its metadata is no case's
 */
export async function readGoldenCase(file: string, source: ByteSource): Promise<GoldenCase> {
  try {
    const opened = await openSafetensors(source);
    const text = (name: string): string => opened.metadata.get(name) ?? invalid(file, `metadata has no "${name}"`);
    const inputs = await tensors(opened, file, names(file, 'inputs', text('inputs')));
    const outputs = await tensors(opened, file, names(file, 'outputs', text('outputs')));
    const gradNames = names(file, 'grads', text('grads'));
    const unknown = gradNames.find((name) => !/^(cotangent|grad)_./.test(name));
    if (unknown !== undefined) invalid(file, `grads lists "${unknown}"; use cotangent_<output> and grad_<input>`);
    const some = (prefix: string): Promise<Record<string, GoldenTensor>> =>
      tensors(
        opened,
        file,
        gradNames.filter((name) => name.startsWith(prefix)),
        prefix.length,
      );
    const cotangents = await some('cotangent_');
    const gradients = await some('grad_');
    for (const name of Object.keys(cotangents)) if (!(name in outputs)) invalid(file, `cotangent_${name} has no output "${name}"`);
    for (const name of Object.keys(gradients)) if (!(name in inputs)) invalid(file, `grad_${name} has no input "${name}"`);
    return {
      file,
      op: text('op'),
      params: json(file, 'params', text('params'), isRecord),
      inputs,
      outputs,
      cotangents,
      gradients,
      tolerance: json(file, 'tolerance', text('tolerance'), isTolerance),
      source: opened.metadata.get('source') ?? '',
    };
  } catch (error) {
    if (error instanceof HeedError && error.message.startsWith('safetensors:')) invalid(file, error.message, error);
    throw error;
  } finally {
    await source.close?.();
  }
}

/** True when the case stores gradients to check. */
export function hasGradients(golden: GoldenCase): boolean {
  return Object.keys(golden.gradients).length > 0;
}

async function tensors(opened: SafetensorsFile, file: string, wanted: string[], drop = 0): Promise<Record<string, GoldenTensor>> {
  const found: Record<string, GoldenTensor> = {};
  for (const name of wanted) {
    const entry = opened.tensors.get(name) ?? invalid(file, `metadata names tensor "${name}", which the file lacks`);
    const values = await opened.values(name);
    if (values instanceof BigInt64Array || values instanceof BigUint64Array) {
      const numbers = Float64Array.from(values, Number);
      if (!numbers.every(Number.isSafeInteger)) invalid(file, `tensor "${name}" holds integers beyond 2^53`);
      found[name.slice(drop)] = { dtype: entry.dtype, shape: entry.shape, values: numbers };
    } else {
      found[name.slice(drop)] = { dtype: entry.dtype, shape: entry.shape, values: Float64Array.from(values) };
    }
  }
  return found;
}

function names(file: string, field: string, text: string): string[] {
  return json(file, field, text, (value): value is string[] => Array.isArray(value) && value.every((name) => typeof name === 'string'));
}

function json<T>(file: string, field: string, text: string, is: (value: unknown) => value is T): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  return is(value) ? value : invalid(file, `metadata "${field}" is ${text.slice(0, 60)}, which is not the JSON expected there`);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isTolerance(value: unknown): value is Tolerance {
  return isRecord(value) && [value['atol'], value['rtol']].every((bound) => typeof bound === 'number' && bound >= 0);
}

function invalid(file: string, what: string, cause?: unknown): never {
  throw new HeedError('INVALID_FILE', `golden: ${file}: ${what}`, cause === undefined ? undefined : { cause });
}
