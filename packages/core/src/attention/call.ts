import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import { tensor } from '../tensor/create.js';
import { isTensor } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { freeNames } from '../kernel/expr/index.js';
import type { TokenOrder } from '../ops/permute-tokens.js';
import { slots, type Slots } from './code.js';
import { onHost } from './mask/index.js';
import type { AttentionOptions } from './options.js';
import { type AttentionSizes, type BiasLayout, checkKeyBias, checkOptions, checkSizes } from './problem.js';
import { alibiSlopes, composeScore, type ComposedScore } from './score.js';
import { checkSelection, type SelectionLayout } from './selection.js';
import { checkVisibility, type Visibility, visibilityOf } from './visibility.js';

/** A checked call: what stays the same for all its dispatches, forward and backward. */
export interface AttentionCall {
  device: Device;
  sizes: AttentionSizes;
  options: AttentionOptions;
  scale: number;
  /** q, k and v are f16. */
  halves: boolean;
  /** Position of the first query row where the host knows it. */
  queryOffset: number | undefined;
  score: ComposedScore | undefined;
  visibility: Visibility;
  bias: BiasLayout | undefined;
  selection: SelectionLayout | undefined;
  /** Small tensors that kernels read out of `extras`; kept until the backward. */
  arrays: NamedArray[];
  /** What score function and mask read, by slot. */
  slots: Slots;
  /**
   * Where the rows of q, k, v, the output and all gradients lie: the row of token i at order[i], positions count tokens. For kernels
   * on fragments alone.
   */
  order?: TokenOrder | undefined;
}

/** A small array of the call: `lengths`, `offsets`, `sinks`, `keyBias`, `score <name>`, `mask <name>`. */
export interface NamedArray {
  name: string;
  tensor: Tensor;
  /** Gradients flow into it. */
  differentiable: boolean;
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, LIMIT_EXCEEDED */
export function prepareCall(who: string, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): AttentionCall {
  const sizes = checkSizes(who, q, k, v);
  checkOptions(who, sizes, options);
  checkVisibility(who, options);
  const { device } = q;
  const score = composeScore({ scoreMod: options.scoreMod, softcap: options.softcap, alibi: slopesOf(device, sizes.heads, options.alibi) });
  const visibility = visibilityOf(options);
  const arrays: NamedArray[] = [];
  const add = (name: string, t: Tensor | undefined, differentiable: boolean): void => {
    if (t) arrays.push({ name, tensor: t, differentiable });
  };
  const { queryOffset } = options;
  add('lengths', options.lengths, false);
  if (typeof queryOffset !== 'number') add('offsets', queryOffset, false);
  add('sinks', options.sinks, true);
  add('keyBias', options.keyBias, true);
  for (const { name, differentiable } of score?.fn.captures ?? []) add(`score ${name}`, score?.captures[name], differentiable);
  for (const [name, source] of Object.entries(visibility.mask?.captures ?? {})) if (isTensor(source)) add(`mask ${name}`, source, false);
  return {
    device,
    sizes,
    options,
    halves: q.dtype === 'f16' && k.dtype === 'f16',
    scale: options.scale ?? 1 / Math.sqrt(sizes.headDim),
    queryOffset: queryOffset === undefined ? sizes.keys - sizes.queries : typeof queryOffset === 'number' ? queryOffset : undefined,
    score,
    visibility,
    bias: options.keyBias && checkKeyBias(who, sizes, options.keyBias),
    selection: checkedSelection(who, options, sizes, visibility),
    arrays,
    slots: slotsOf(who, score, visibility),
  };
}

function checkedSelection(
  who: string,
  { selection }: AttentionOptions,
  sizes: AttentionSizes,
  { mask }: Visibility,
): SelectionLayout | undefined {
  if (!selection) return undefined;
  const onHostOnly = Object.entries(mask?.captures ?? {}).find(([, source]) => onHost(source));
  if (onHostOnly)
    throw new HeedError(
      'UNSUPPORTED',
      `${who}: a selection together with a mask that reads the host array "${onHostOnly[0]}"; give the mask that array as a tensor`,
    );
  return checkSelection(who, selection, sizes);
}

function slopesOf(device: Device, heads: number, alibi: AttentionOptions['alibi']): Tensor | undefined {
  if (alibi === undefined || alibi === false) return undefined;
  if (alibi === true) return tensor(device, alibiSlopes(heads));
  return isTensor(alibi) ? alibi : tensor(device, Float32Array.from(alibi));
}

function slotsOf(who: string, score: ComposedScore | undefined, { mask }: Visibility): Slots {
  const free = mask && freeNames(mask.predicate);
  const captures: Slots['captures'] = [
    ...(score?.fn.captures ?? []).map(({ name }) => ({ name: `score ${name}`, buffer: 'extras' as const })),
    ...(free?.captures ?? []).map(({ name }) => ({
      name: `mask ${name}`,
      buffer: mask && onHost(mask.captures[name]!) ? ('arena' as const) : ('extras' as const),
    })),
  ];
  const uniforms = [
    ...(score?.fn.uniforms ?? []).map(({ name }) => `score ${name}`),
    ...(free?.uniforms ?? []).map(({ name }) => `mask ${name}`),
  ];
  if (captures.length > slots || uniforms.length > slots)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `${who}: score function and mask read ${captures.length} captured arrays and ${uniforms.length} uniforms; at most ${slots} of each are supported, put values into arrays`,
    );
  return { captures, uniforms };
}
