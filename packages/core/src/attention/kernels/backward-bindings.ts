// What the backward sweeps bind, are told at run time and call, the same for tiles, for rows in registers and for fragments.
import { type Binding, type Operand, read } from '../../kernel/bindings.js';
import type { Tensor } from '../../tensor/tensor.js';
import { scoreFunctions, type ScoreSpec, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { rowLoader } from './tile.js';

/** What every sweep over f32 rows reads: 7 of the 8 bindings of the smallest device. */
export function backwardReads<S extends ScoreSpec>(): Record<keyof BackwardTensors, Binding<S>> {
  const width = (spec: S): number => (spec.vector ? 4 : 1);
  return {
    q: read('float', { width }),
    k: read('float', { width }),
    v: read('float', { width }),
    dOut: read('float', { width }),
    stats: read('f32', { raw: 'vec2f' }),
    arena: read('any', { raw: 'u32', when: (s) => s.arena }),
    extras: read('any', { raw: 'u32', when: (s) => s.extras }),
  };
}

/** Buffers of a backward dispatch. */
export interface BackwardTensors {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  dOut: Tensor;
  stats: Tensor;
  arena: Operand | undefined;
  extras: Tensor | undefined;
}

/** Run-time values of every backward sweep: those of a score, and the strides of dOut. */
export const backwardUniforms: ScoreUniforms & Readonly<Record<'dOutBatch' | 'dOutRow' | 'dOutHead', 'u32'>> = {
  ...scoreUniforms,
  dOutBatch: 'u32',
  dOutRow: 'u32',
  dOutHead: 'u32',
};

/** Those of a sweep whose rows are keys, besides. */
export const keySweepUniforms = {
  /** Parts of the query tiles. */
  splits: 'u32',
  /** First elements of dv and dBias in the buffer, and elements of one part. */
  dvAt: 'u32',
  dBiasAt: 'u32',
  partSize: 'u32',
  /** First key tile of the dispatch, and keys a batch entry in the buffer. */
  firstTile: 'u32',
  storedKeys: 'u32',
} as const;

export type BackwardUniforms = UniformsOf<typeof backwardUniforms>;
export type KeySweepUniforms = UniformsOf<typeof keySweepUniforms>;

/** Statistics of a query row: logsumexp in base 2, 1e30 where it sees nothing or is no row, and delta. */
export const statFunction: string = `
    fn statOf(row: u32, valid: bool) -> vec2f {
      if (!valid) { return vec2f(1e30, 0.0); }
      return stats[base_stats() + row];
    }`;

/** Functions of every sweep over f32 rows: rows in items of `width` elements, a score's place, statistics. */
export function backwardFunctions(spec: ScoreSpec, width: 1 | 4): string {
  const { headDim, valueDim, vector } = spec;
  return `
    ${rowLoader('q', headDim, width, vector)}
    ${rowLoader('k', headDim, width, vector)}
    ${rowLoader('v', valueDim, width, vector)}
    ${rowLoader('dOut', valueDim, width, vector)}
    ${scoreFunctions(spec)}
    ${statFunction}`;
}
