import type { Device, Params } from '@heed/core';
import { RandomStream } from '@heed/core';
import { fileSource, loadParameters, openSafetensors } from '@heed/core/io';
import { type LabConfig, parseConfig } from '../config.js';
import type { LanguageModel, LanguageModelParams } from './language-model.js';
import { buildModel } from './mixers.js';

/** A trained model on a device. */
export interface LoadedModel {
  config: LabConfig;
  model: LanguageModel;
  params: LanguageModelParams;
}

/** Draws zeros, for weights that a file is read over: millions of normal numbers take longer than the file. */
class Blank extends RandomStream {
  override normal(count: number): Float32Array<ArrayBuffer> {
    return new Float32Array(count);
  }

  override stream(): this {
    return this;
  }
}

/**
 * Loads a weights file: its notes carry the configuration that it was trained with.
 * @param precision of the products; default that of the training
 * @throws HeedError INVALID_FILE when the file is no weights file of the lab, or of another model
 */
export async function loadModel(device: Device, path: string, precision?: 'f32' | 'f16'): Promise<LoadedModel> {
  const header = await openSafetensors(await fileSource(path));
  const text = header.metadata.get('config') ?? '{}';
  await header.close();
  const config = parseConfig(text, path);
  const model = buildModel(config, precision);
  const params = model.init(device, new Blank(0));
  const source = await fileSource(path);
  try {
    await loadParameters(source, params as Params);
  } finally {
    await source.close?.();
  }
  return { config, model, params };
}
