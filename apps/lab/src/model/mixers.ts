import type { Params, State, TokenMixer } from '@heed/core';
import { attentionMixer } from '@heed/core/nn';
import { lightning2Mixer } from '@heed/linear/lightning2';
import { neighborhoodMixer } from '@heed/sparse-local/fna';
import { zetaMixer } from '@heed/topk/zeta';
import { headDimension, type LabConfig, type MixerName, type ModelConfig } from '../config.js';
import { LanguageModel } from './language-model.js';

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
  zeta: (model, _layer, precision) => zetaMixer({ ...shape(model), precision, ...model.mixerOptions }) as AnyMixer,
};

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
