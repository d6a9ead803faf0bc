import type { WgslModule } from '../../kernel/modules.js';
import type { Reading } from './geometry.js';

/** Run-time values of the two spatial axes, rows (y) and columns (x). */
export const readingUniforms: Readonly<
  Record<'stepY' | 'stepX' | 'upY' | 'upX' | 'extentY' | 'extentX' | 'tapsY' | 'tapsX' | 'outY' | 'outX', 'u32'> &
    Record<'tapY' | 'tapX' | 'originY' | 'originX', 'i32'>
> = {
  stepY: 'u32',
  stepX: 'u32',
  upY: 'u32',
  upX: 'u32',
  extentY: 'u32',
  extentX: 'u32',
  tapsY: 'u32',
  tapsX: 'u32',
  outY: 'u32',
  outX: 'u32',
  tapY: 'i32',
  tapX: 'i32',
  originY: 'i32',
  originX: 'i32',
};

export interface ReadingPair {
  y: Reading;
  x: Reading;
  taps: readonly [number, number];
  outputs: readonly [number, number];
}

export function readingValues({ y, x, taps, outputs }: ReadingPair): Record<keyof typeof readingUniforms, number> {
  return {
    stepY: y.step,
    stepX: x.step,
    upY: y.up,
    upX: x.up,
    extentY: y.extent,
    extentX: x.extent,
    tapsY: taps[0],
    tapsX: taps[1],
    outY: outputs[0],
    outX: outputs[1],
    tapY: y.tap,
    tapX: x.tap,
    originY: y.origin,
    originX: x.origin,
  };
}

/** `sourceY(o, k)` and `sourceX(o, k)`: the element that output o reads at tap k, or -1 where there is none. */
export const readingText: WgslModule = {
  name: 'conv-reading',
  text: `
    fn sourceAlong(at: i32, up: u32, extent: u32) -> i32 {
      if (at < 0 || u32(at) % up != 0u || u32(at) / up >= extent) { return -1; }
      return i32(u32(at) / up);
    }
    fn sourceY(o: u32, k: u32) -> i32 {
      return sourceAlong(i32(o * uniforms.stepY) + i32(k) * uniforms.tapY + uniforms.originY, uniforms.upY, uniforms.extentY);
    }
    fn sourceX(o: u32, k: u32) -> i32 {
      return sourceAlong(i32(o * uniforms.stepX) + i32(k) * uniforms.tapX + uniforms.originX, uniforms.upX, uniforms.extentX);
    }`,
};
