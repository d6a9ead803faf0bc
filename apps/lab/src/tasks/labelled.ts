import { argmax, crossEntropy, type Device, indexSelect, reshape, scope, type Tensor, tensor } from '@heed/core';

/** Sequences of tokens of which some carry a label. Every sequence of a batch has as many labels. */
export interface LabelledBatch {
  readonly batch: number;
  readonly tokens: number;
  /** [batch, tokens] */
  readonly inputs: Uint32Array<ArrayBuffer>;
  /** Places of the labels in the flattened batch, ascending, [batch, labels]. */
  readonly positions: Uint32Array<ArrayBuffer>;
  /** [batch, labels] */
  readonly labels: Uint32Array<ArrayBuffer>;
}

/** A model that gives the stream before its head, so that only labelled positions reach the head. */
export interface LabelledModel<P> {
  /** u32 [B, T] to [B, T, dim]. */
  hidden(params: P, tokens: Tensor, options: { training: boolean; step: number }): Tensor;
  /** [rows, dim] to logits [rows, vocabulary]. */
  logits(params: P, rows: Tensor): Tensor;
}

function labelledLogits<P>(
  model: LabelledModel<P>,
  params: P,
  batch: LabelledBatch,
  device: Device,
  training: boolean,
  step: number,
): Tensor {
  const x = model.hidden(params, tensor(device, batch.inputs, [batch.batch, batch.tokens]), { training, step });
  const rows = reshape(x, [batch.batch * batch.tokens, x.dim(-1)]);
  return model.logits(params, indexSelect(rows, tensor(device, batch.positions)));
}

/** Mean cross-entropy of the labels in nats; positions without a label count for nothing. */
export function labelledLoss<P>(model: LabelledModel<P>, params: P, batch: LabelledBatch, device: Device, step: number): Tensor {
  return scope(() => crossEntropy(labelledLogits(model, params, batch, device, true, step), tensor(device, batch.labels)));
}

/** Share of labels whose argmax is right: the mean over sequences of each sequence's share; `whole` counts sequences without a fault. */
export async function labelledAccuracy<P>(
  model: LabelledModel<P>,
  params: P,
  batches: readonly LabelledBatch[],
  device: Device,
): Promise<{ accuracy: number; whole: number }> {
  let right = 0;
  let labels = 0;
  let whole = 0;
  let sequences = 0;
  for (const batch of batches) {
    const found = scope(() => argmax(labelledLogits(model, params, batch, device, false, 0), -1));
    const values = await found.read();
    found.dispose();
    const each = batch.labels.length / batch.batch;
    for (let row = 0; row < batch.batch; row++) {
      let hits = 0;
      for (let i = row * each; i < (row + 1) * each; i++) if (values[i] === batch.labels[i]) hits++;
      right += hits;
      whole += hits === each ? 1 : 0;
    }
    labels += batch.labels.length;
    sequences += batch.batch;
  }
  return { accuracy: right / labels, whole: whole / sequences };
}
