import type { Params, State, TokenMixer } from '@heed/core';
import { attentionMixer } from '@heed/core/nn';
import { basedLayerMixer } from '@heed/linear/based';
import { lawcatMixer } from '@heed/linear/lawcat';
import { lightning2Mixer } from '@heed/linear/lightning2';
import { llaMixer } from '@heed/linear/lla';
import { nprfMixer } from '@heed/linear/nprf';
import { titansMacMixer, titansMagMixer, titansMalMixer, titansMixer } from '@heed/linear/titans';
import { lightningMixer } from '@heed/linear/lightning';
import { transnormerllmMixer } from '@heed/linear/transnormerllm';
import { transnormerMixer } from '@heed/linear/transnormer';
import { nalaformerMixer } from '@heed/linear/nalaformer';
import { neighborhoodMixer } from '@heed/sparse-local/fna';
import { zetaMixer } from '@heed/topk/zeta';
import { headDimension, type LabConfig, type MixerName, MIXERS, type ModelConfig } from '../config.js';
import { LanguageModel } from './language-model.js';
import { linearMixer } from './linear-mixer.js';

type AnyMixer = TokenMixer<Params, State>;
type Precision = 'f32' | 'f16';

// A configuration's further options are checked by the mixer that takes them.
const makers: Record<MixerName, (model: ModelConfig, layer: number, precision: Precision) => AnyMixer> = {
  softmax: (model, _layer, precision) =>
    attentionMixer({ ...shape(model), precision, rope: { base: model.ropeBase ?? 10_000 }, ...model.mixerOptions }) as AnyMixer,
  lightning2: (model, layer, precision) =>
    lightning2Mixer({ ...shape(model), precision, layer, layers: model.layers, ...model.mixerOptions }) as AnyMixer,
  neighborhood: (model, _layer, precision) =>
    neighborhoodMixer({
      ...shape(model),
      precision,
      window: model.window ?? model.dim,
      rope: { base: model.ropeBase ?? 10_000 },
      ...model.mixerOptions,
    }) as AnyMixer,
  linear: (model, _layer, precision) => linearMixer({ ...shape(model), precision, ...model.mixerOptions }) as AnyMixer,
  lightning: (model, layer, precision) =>
    lightningMixer({ ...shape(model), precision, layer, layers: model.layers, ...model.mixerOptions }) as AnyMixer,
  based: (model, layer, precision) =>
    basedLayerMixer({ ...shape(model), precision, layer, layers: model.layers, ...model.mixerOptions }) as AnyMixer,
  titans: (model, _layer, precision) => titansMixer({ ...shape(model), precision, ...model.mixerOptions }) as AnyMixer,
  'titans-mag': (model, _layer, precision) => titansMagMixer({ ...hybrid(model), precision, ...model.mixerOptions }) as AnyMixer,
  'titans-mal': (model, _layer, precision) => titansMalMixer({ ...hybrid(model), precision, ...model.mixerOptions }) as AnyMixer,
  'titans-mac': (model, _layer, precision) => titansMacMixer({ ...hybrid(model), precision, ...model.mixerOptions }) as AnyMixer,
  lawcat: (model, _layer, precision) =>
    lawcatMixer({ ...shape(model), precision, rope: { base: model.ropeBase ?? 10_000 }, ...model.mixerOptions }) as AnyMixer,
  transnormerllm: (model, layer, precision) =>
    transnormerllmMixer({ ...shape(model), precision, layer, layers: model.layers, ...model.mixerOptions }) as AnyMixer,
  transnormer: (model, layer, precision) =>
    transnormerMixer({ ...shape(model), precision, layer, layers: model.layers, ...model.mixerOptions }) as AnyMixer,
  nalaformer: (model, _layer, precision) => nalaformerMixer({ ...shape(model), precision, ...model.mixerOptions }) as AnyMixer,
  lla: (model, _layer, precision) =>
    llaMixer({ ...shape(model), precision, rope: { base: model.ropeBase ?? 10_000 }, ...model.mixerOptions }) as AnyMixer,
  nprf: (model, layer, precision) => nprfMixer({ ...shape(model), precision, seed: layer, ...model.mixerOptions }) as AnyMixer,
  zeta: (model, _layer, precision) => zetaMixer({ ...shape(model), precision, ...model.mixerOptions }) as AnyMixer,
};

/** Width and heads of a memory with short attention, whose attention is rotary. */
function hybrid(model: ModelConfig): { dim: number; heads: number; headDim: number; rope: { base: number } } {
  return { dim: model.dim, heads: model.heads, headDim: headDimension(model), rope: { base: model.ropeBase ?? 10_000 } };
}

function shape(model: ModelConfig): { dim: number; heads: number; headDim: number; kvHeads?: number } {
  return {
    dim: model.dim,
    heads: model.heads,
    headDim: headDimension(model),
    ...(model.kvHeads !== undefined && { kvHeads: model.kvHeads }),
  };
}

/** The model of a configuration; a technique is chosen by its mixer's name alone. */
export function buildModel(config: LabConfig, precision: Precision = config.training.precision): LanguageModel {
  const { model } = config;
  const mixers = Array.from({ length: model.layers }, (_, layer) => makers[model.mixer](model, layer, precision));
  return new LanguageModel({ name: config.name, dim: model.dim, hidden: model.mlp, precision }, mixers);
}

type MixerOptions = NonNullable<ModelConfig['mixerOptions']>;

/**
 * One mixer by its registry name with options behind a colon, `based:featureDim=8,kind=taylor`, for tasks that build models of their own.
 * @param place width and heads of the model, and which layer of how many this is
 * @param defaults options by name of the mixer; those of the text come after them
 * @throws RangeError for an unknown name or an option without a value
 */
export function makeMixer(
  text: string,
  place: { dim: number; heads: number; layer: number; layers: number; precision?: Precision },
  defaults: Readonly<Record<string, MixerOptions>> = {},
): AnyMixer {
  const [name = '', list = ''] = text.split(':');
  const mixer = MIXERS.find((one) => one === name);
  if (!mixer) throw new RangeError(`lab: there is no mixer "${name}"; there are ${MIXERS.join(', ')}`);
  const given = list === '' ? [] : list.split(',').map((pair) => optionOf(pair, text));
  const { dim, heads, layer, layers, precision = 'f32' } = place;
  const mixerOptions = { ...defaults[name], ...Object.fromEntries(given) };
  return makers[mixer]({ mixer, dim, heads, layers, mlp: dim, mixerOptions }, layer, precision);
}

function optionOf(pair: string, text: string): [string, number | boolean | string] {
  const [key = '', value = ''] = pair.split('=');
  if (key === '' || value === '') throw new RangeError(`lab: mixer "${text}": "${pair}" is no key=value`);
  if (value === 'true' || value === 'false') return [key, value === 'true'];
  return [key, Number.isFinite(Number(value)) ? Number(value) : value];
}
