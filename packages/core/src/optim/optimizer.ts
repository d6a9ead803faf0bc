import type { Params } from '../autodiff/grad.js';
import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import { asContiguous } from '../tensor/copy.js';
import { tensor, zeros } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { controlLength, gradientSquareSums, optimizerControl, optimizerUpdate, partialCount, type Rule } from './kernels.js';
import { matchGradients, namedTensors } from './parameters.js';

/** Parameters that are treated otherwise than the rest. The first group whose `match` fits a name decides. */
export interface ParameterGroup {
  match: RegExp | ((name: string, parameter: Tensor) => boolean);
  /** In place of the optimiser's. */
  weightDecay?: number;
  /** Factor on the learning rate. Default 1. */
  learningRateFactor?: number;
  /** Climb in place of descend (Lagrange multipliers). Default false. */
  ascent?: boolean;
}

export interface OptimizerOptions {
  /** Default 0 for sgd, 0.1 for adamw and lion; vectors (norms, biases, gates) get none unless a group says so. */
  weightDecay?: number;
  groups?: readonly ParameterGroup[];
  /** Largest global norm of the gradients; larger ones are scaled down to it. Default: no clipping. */
  clip?: number;
  /**
   * Factor on the loss, for f16: pass `optimizer.lossScale` as `scale` of `valueAndGrad`. `dynamic` starts at 2^16, halves
   * and skips the step when a gradient is not finite, doubles after 2,000 clean steps. Default 1.
   */
  lossScale?: number | 'dynamic';
}

export interface AdamWOptions extends OptimizerOptions {
  /** Decay of the first and second moment. Default [0.9, 0.95]. */
  betas?: readonly [number, number];
  /** Default 1e-8. */
  epsilon?: number;
}

export interface SgdOptions extends OptimizerOptions {
  /** Default 0. */
  momentum?: number;
  /** Default false. */
  nesterov?: boolean;
}

export interface LionOptions extends OptimizerOptions {
  /** Default [0.9, 0.99]. */
  betas?: readonly [number, number];
}

interface Entry {
  name: string;
  parameter: Tensor;
  moment: Tensor | undefined;
  second: Tensor | undefined;
  weightDecay: number;
  learningRateFactor: number;
  slot: number;
}

interface Settings {
  rule: Rule;
  momentum: number;
  nesterov: boolean;
  betas: readonly [number, number];
  epsilon: number;
  weightDecay: number;
}

const dynamicStart = 2 ** 16;

/**
 * Updates a tree of f32 parameters in place from their gradients. Clipping, loss scale and the decision to skip a step are
 * made on the device: no step waits for a read-back.
 */
export class Optimizer {
  readonly rule: Rule;
  /** Steps taken, skipped ones included. */
  steps = 0;
  private readonly device: Device;
  private readonly entries: Entry[] = [];
  private readonly partials: Tensor;
  private readonly control: Tensor;
  private readonly partialsUsed: number;
  private readonly dynamic: boolean;

  constructor(
    params: Params,
    private readonly settings: Settings,
    private readonly options: OptimizerOptions,
  ) {
    this.rule = settings.rule;
    const named = namedTensors(params);
    const [first] = named.values();
    if (!first) throw new HeedError('INVALID_ARGUMENT', 'optim: the tree holds no tensors; pass the parameters of a model');
    this.device = first.device;
    let slot = 0;
    const moments = settings.rule === 'sgd' ? settings.momentum > 0 : true;
    for (const [name, parameter] of named) {
      if (parameter.dtype !== 'f32' || !parameter.contiguous) {
        throw new HeedError(
          'DTYPE_MISMATCH',
          `optim: parameter "${name}" is ${parameter.describe()}${parameter.contiguous ? '' : ', a strided view'}; master weights are contiguous f32 (cast operands to f16 in the model)`,
        );
      }
      const group = options.groups?.find((g) => (typeof g.match === 'function' ? g.match(name, parameter) : g.match.test(name)));
      this.entries.push({
        name,
        parameter,
        moment: moments ? zeros(this.device, parameter.shape, { label: `${name} first moment` }).keep() : undefined,
        second: settings.rule === 'adamw' ? zeros(this.device, parameter.shape, { label: `${name} second moment` }).keep() : undefined,
        weightDecay: group?.weightDecay ?? (parameter.rank < 2 ? 0 : settings.weightDecay),
        learningRateFactor: (group?.learningRateFactor ?? 1) * (group?.ascent ? -1 : 1),
        slot,
      });
      slot += partialCount(parameter.size);
    }
    this.partialsUsed = slot;
    this.partials = zeros(this.device, [Math.max(1, slot) * 2], { label: 'gradient square sums' }).keep();
    this.dynamic = options.lossScale === 'dynamic';
    const scale = options.lossScale === 'dynamic' ? dynamicStart : (options.lossScale ?? 1);
    this.control = tensor(this.device, [1, 0, scale, 0, 0, 0, 0, 0], [controlLength], { label: 'optimizer control' }).keep();
  }

  /** The present loss scale, f32 [1], as a handle of the optimiser's own: do not dispose while it lives. */
  get lossScale(): Tensor {
    return this.control.view({ shape: [1], strides: [1], offset: this.control.offset + 2 });
  }

  /**
   * One step. Gradients that are not finite skip it when the loss scale is dynamic, and are skipped likewise otherwise:
   * `statistics()` counts them.
   * @param grads the tree of `valueAndGrad`, names and shapes of the parameters
   * @param options of this step
   * @param options.learningRate as the schedule has it
   */
  step(grads: Params, { learningRate }: { learningRate: number }): void {
    const named = matchGradients(new Map(this.entries.map((e) => [e.name, e.parameter])), grads);
    const { betas, rule } = this.settings;
    this.steps++;
    scope(() => {
      const own = this.entries.map((e) => asContiguous(named.get(e.name) as Tensor, 1));
      this.entries.forEach((e, i) => gradientSquareSums(own[i] as Tensor, this.partials, e.slot));
      optimizerControl(this.partials, this.control, {
        count: this.partialsUsed,
        clip: this.options.clip ?? 0,
        dynamic: this.dynamic,
        growEvery: 2000,
        largest: 2 ** 24,
      });
      this.entries.forEach((e, i) =>
        optimizerUpdate(e.parameter, own[i] as Tensor, e.moment, e.second, this.control, {
          rule,
          nesterov: this.settings.nesterov,
          learningRate: learningRate * e.learningRateFactor,
          weightDecay: e.weightDecay,
          beta1: rule === 'sgd' ? this.settings.momentum : betas[0],
          beta2: betas[1],
          epsilon: this.settings.epsilon,
          correction1: 1 - betas[0] ** this.steps,
          correction2: 1 - betas[1] ** this.steps,
          first: this.steps === 1,
        }),
      );
    });
  }

  /** Norm of the last gradients (before clipping, without loss scale), loss scale, and steps skipped so far. */
  async statistics(): Promise<{ gradientNorm: number; lossScale: number; skipped: number }> {
    const values = await this.control.read();
    return { gradientNorm: values[4] ?? 0, lossScale: values[2] ?? 1, skipped: values[5] ?? 0 };
  }

  /** Everything that a checkpoint must keep beside the parameters, by name; live tensors of the optimiser. */
  tensors(): Map<string, Tensor> {
    const all = new Map<string, Tensor>([['control', this.control]]);
    for (const e of this.entries) {
      if (e.moment) all.set(`first.${e.name}`, e.moment);
      if (e.second) all.set(`second.${e.name}`, e.second);
    }
    return all;
  }

  /** Frees moments and control values; parameters stay. */
  dispose(): void {
    for (const t of this.tensors().values()) t.dispose();
    this.partials.dispose();
  }
}

/**
 * AdamW (Loshchilov, Hutter 2019): decoupled weight decay, bias-corrected moments.
 * @param params a tree of contiguous f32 tensors, updated in place by `step`
 * @param options betas [0.9, 0.95], epsilon 1e-8, weightDecay 0.1 (none on vectors), no clipping
 * @throws HeedError INVALID_ARGUMENT for a tree without tensors, DTYPE_MISMATCH for a parameter that is no contiguous f32
 */
export function adamW(params: Params, options: AdamWOptions = {}): Optimizer {
  return new Optimizer(
    params,
    {
      rule: 'adamw',
      momentum: 0,
      nesterov: false,
      betas: options.betas ?? [0.9, 0.95],
      epsilon: options.epsilon ?? 1e-8,
      weightDecay: options.weightDecay ?? 0.1,
    },
    options,
  );
}

/**
 * Stochastic gradient descent with momentum: m = momentum m + g, p -= learning rate times m (or g + momentum m with `nesterov`).
 * @param params a tree of contiguous f32 tensors, updated in place by `step`
 * @param options momentum 0, nesterov false, weightDecay 0, no clipping
 * @throws HeedError INVALID_ARGUMENT for a tree without tensors, DTYPE_MISMATCH for a parameter that is no contiguous f32
 */
export function sgd(params: Params, options: SgdOptions = {}): Optimizer {
  return new Optimizer(
    params,
    {
      rule: 'sgd',
      momentum: options.momentum ?? 0,
      nesterov: options.nesterov ?? false,
      betas: [0, 0],
      epsilon: 0,
      weightDecay: options.weightDecay ?? 0,
    },
    options,
  );
}

/**
 * Lion (Chen et al. 2023): the sign of an interpolated momentum. Learning rates are 3 to 10 times smaller than AdamW's.
 * @param params a tree of contiguous f32 tensors, updated in place by `step`
 * @param options betas [0.9, 0.99], weightDecay 0.1 (none on vectors), no clipping
 * @throws HeedError INVALID_ARGUMENT for a tree without tensors, DTYPE_MISMATCH for a parameter that is no contiguous f32
 */
export function lion(params: Params, options: LionOptions = {}): Optimizer {
  return new Optimizer(
    params,
    {
      rule: 'lion',
      momentum: 0,
      nesterov: false,
      betas: options.betas ?? [0.9, 0.99],
      epsilon: 0,
      weightDecay: options.weightDecay ?? 0.1,
    },
    options,
  );
}
