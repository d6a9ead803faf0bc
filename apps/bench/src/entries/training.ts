import { crossEntropy, slice, tensor, type Tensor } from '@heed/core';
import { adamW } from '@heed/core/optim';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { rowError, worst } from '../samples.js';

// What a training step does besides attention and products; memory bandwidth bounds both.

const logitAt = inputAt('logits');
const parameterAt = inputAt('parameters');
const gradientAt = inputAt('gradients');

interface Setting {
  readonly rows: number;
  readonly width: number;
}

/** Target class of a row: any fixed spread over the classes will do. */
const targetOf = (row: number, classes: number): number => (row * 7919) % classes;

async function readRows(x: Tensor, rows: readonly number[]): Promise<Float64Array[]> {
  const found: Float64Array[] = [];
  for (const row of rows) {
    const view = slice(x, 0, row, row + 1);
    found.push(Float64Array.from(await view.read(), Number));
    view.dispose();
  }
  return found;
}

function lossOf(row: number, classes: number): number {
  let most = -Infinity;
  for (let c = 0; c < classes; c++) most = Math.max(most, logitAt(row * classes + c));
  let sum = 0;
  for (let c = 0; c < classes; c++) sum += Math.exp(logitAt(row * classes + c) - most);
  return Math.log(sum) + most - logitAt(row * classes + targetOf(row, classes));
}

function crossEntropyEntry({ rows, width: classes }: Setting): Entry {
  const bytes = rows * classes * 4;
  const places = [0, Math.floor(rows / 3), rows - 1];
  return {
    id: `cross-entropy/f32/${rows}x${classes}`,
    shape: { rows, classes },
    dtype: 'f32',
    pass: 'forward',
    work: { algorithm: 'logits read once', bytes, flops: 0 },
    memory: { bytes: bytes + 4 * 4 * rows, why: 'logits, targets, losses and logsumexps' },
    tolerance: 1e-5,
    open(device): Opened {
      const logits = input(device, 'logits', [rows, classes]);
      const targets = tensor(
        device,
        Uint32Array.from({ length: rows }, (_, row) => targetOf(row, classes)),
        [rows],
      );
      return {
        run: () => [crossEntropy(logits, targets, { reduction: 'none' })],
        async sample([losses]) {
          const got = await readRows(losses as Tensor, places);
          return () => worst(places.map((row, i) => rowError(got[i] as Float64Array, [lossOf(row, classes)])));
        },
        dispose: () => [logits, targets].forEach((t) => t.dispose()),
      };
    },
  };
}

const LEARNING_RATE = 1e-3;
const DECAY = 0.1;

/** The first step of AdamW: both moments are the gradient's own, so that it moves by its sign. */
function steppedRow(row: number, width: number): Float64Array {
  return Float64Array.from({ length: width }, (_, c) => {
    const [p, g] = [parameterAt(row * width + c), gradientAt(row * width + c)];
    return p - LEARNING_RATE * (g / (Math.abs(g) + 1e-8) + DECAY * p);
  });
}

function adamEntry({ rows, width }: Setting): Entry {
  const size = rows * width;
  const places = [0, Math.floor(rows / 3), rows - 1];
  return {
    id: `adamw/f32/${rows}x${width}`,
    shape: { rows, width },
    dtype: 'f32',
    pass: 'forward',
    work: { algorithm: 'gradients read twice (norm, step), parameters and both moments read and written once', bytes: 32 * size, flops: 0 },
    memory: { bytes: 16 * size, why: 'parameters, gradients and both moments' },
    tolerance: 1e-6,
    open(device): Opened {
      const parameters = input(device, 'parameters', [rows, width]);
      const gradients = input(device, 'gradients', [rows, width]);
      const optimizer = adamW(parameters, { weightDecay: DECAY });
      return {
        run() {
          optimizer.step(gradients, { learningRate: LEARNING_RATE });
          return [];
        },
        async sample() {
          const got = await readRows(parameters, places);
          return () => worst(places.map((row, i) => rowError(got[i] as Float64Array, steppedRow(row, width))));
        },
        dispose() {
          optimizer.dispose();
          [parameters, gradients].forEach((t) => t.dispose());
        },
      };
    },
  };
}

/** Cross-entropy and the optimiser. */
export const training: Family = ({ suite, software }) => {
  if (suite !== 'quick' && suite !== 'kernels') return [];
  return [
    crossEntropyEntry(software ? { rows: 256, width: 512 } : { rows: 16384, width: 8192 }),
    adamEntry(software ? { rows: 256, width: 512 } : { rows: 8192, width: 8192 }),
  ];
};
