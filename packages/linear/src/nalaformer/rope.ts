import { type Device, HeedError, tensor } from '@heed/core';
import type { RotaryTable } from './feature-kernels.js';

/**
 * Rotary positions of a picture: the first half of a head's coordinates turns with the row, the second with the column. Angle m of
 * headDim / 4 is base^(-m / (headDim / 4 - 1)), each for two coordinates (the released code: the last one is exactly 1 / base; a head of 4
 * has the one angle 1).
 * @param device where the table lives
 * @param options the picture and the head
 * @param options.base of the angles. Default 10,000
 * @returns f32 [height width, headDim] each; the caller disposes them
 * @throws HeedError SHAPE_MISMATCH when headDim is no multiple of 4
 */
export function nalaformerRope(
  device: Device,
  { height, width, headDim, base = 10_000 }: { height: number; width: number; headDim: number; base?: number },
): RotaryTable {
  const quarter = headDim / 4;
  if (!Number.isInteger(quarter) || quarter < 1)
    throw new HeedError('SHAPE_MISMATCH', `nalaformerRope: headDim is ${headDim}; rows and columns turn pairs, use a multiple of 4`);
  const size = height * width * headDim;
  const [sin, cos] = [new Float32Array(size), new Float32Array(size)];
  for (let token = 0; token < height * width; token++) {
    for (let i = 0; i < headDim; i++) {
      const place = i < headDim / 2 ? Math.floor(token / width) : token % width;
      const m = Math.floor((i % (headDim / 2)) / 2);
      const angle = place * base ** -(m / Math.max(1, quarter - 1));
      sin[token * headDim + i] = Math.sin(angle);
      cos[token * headDim + i] = Math.cos(angle);
    }
  }
  return { sin: tensor(device, sin, [height * width, headDim]), cos: tensor(device, cos, [height * width, headDim]) };
}
