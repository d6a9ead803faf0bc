import type { Fragments } from '@heed/core/~internal';

// How what was summed in f32 becomes an f16 operand without leaving its range. The state of a head that hardly decays grows with
// the tokens, and a score with the head dimension: both are scaled by one power of two a chunk, taken out again as outputs leave.
// The power comes from a bound, not from the values: |S| <= lambda^n |S before| + n max|k| max|v|, so no pass over the state
// and no barrier is needed. It may be far too large: f16 keeps 11 bits down to 2^-14, and 2^-24 of what the bound allows is
// still 2^-39 n of one token's part. Workgroup memory: 32 bytes.

/** Order of the maxima in `peaks`: those of even chunks, of odd ones; the fourth is that of the state at the start. */
const [queries, keys, values, state] = [0, 1, 2, 3];

export const peaksDeclared: string = `
      var<workgroup> peaks: array<atomic<u32>, 8>;
      fn powerOfTwo(exponent: i32) -> f32 { return bitcast<f32>(u32(exponent + 127) << 23u); }`;

/** Takes part in the maximum at `slot`; floats >= 0 order as their bits do. */
function join(f: Fragments, slot: string, value: string): string {
  if (!f.hardware) return `atomicMax(&peaks[${slot}], bitcast<u32>(${value}));`;
  return `{ let most = subgroupMax(bitcast<u32>(${value})); if (subgroupLane == 0u) { atomicMax(&peaks[${slot}], most); } }`;
}

/** Before the sweep. `bound`: no element of the state is larger. */
export const rangeVariables: string = `
        var bound = 0.0;
        var turn = 0u;
        var down = 1.0;
        var outFactor = 1.0;`;

/** A lane's share of the initial state, `peak`, joins; behind a barrier `boundFromInitial` reads it. */
export function joinInitial(f: Fragments, peak: string): string {
  return join(f, `${state}u`, peak);
}

export const boundFromInitial: string = `bound = bitcast<f32>(atomicLoad(&peaks[${state}u]));`;

/** As a chunk is put into workgroup memory: its maxima join. `peak` makes that of a lane. */
export function joinChunk(f: Fragments, peak: Record<'q' | 'k' | 'v', (name: string) => string>): string {
  return `
          ${peak.q('peakQ')} ${peak.k('peakK')} ${peak.v('peakV')}
          ${join(f, `turn + ${queries}u`, 'peakQ')}
          ${join(f, `turn + ${keys}u`, 'peakK')}
          ${join(f, `turn + ${values}u`, 'peakV')}`;
}

/**
 * Behind the barrier: `down`, the power of two that scales the state and the scores of this chunk, and `outFactor`, which outputs
 * are multiplied by; the bound behind the chunk; the maxima of the next one begin at 0.
 * @param gain outputs are multiplied by what lies behind the decays, too (see cotangent.ts)
 */
export function chunkRange(keyDim: number, gain: boolean): string {
  return `
          let mostK = bitcast<f32>(atomicLoad(&peaks[turn + ${keys}u])) * abs(uniforms.keyScale);
          let mostScore = bitcast<f32>(atomicLoad(&peaks[turn + ${queries}u])) * mostK * ${keyDim}.0;
          // the exponent of the bound above 2^14, from its bits: what is scaled stays under 2^15, and small sums keep their bits
          let excess = clamp(i32(bitcast<u32>(max(bound, mostScore)) >> 23u) - 141, -110, 110);
          down = powerOfTwo(-excess);
          let up = powerOfTwo(excess) * uniforms.stateScale * uniforms.queryScale${gain ? ' * load_decay(uniforms.heads)' : ''};
          bound = bound * whole + f32(held) * mostK * bitcast<f32>(atomicLoad(&peaks[turn + ${values}u]));
          turn = 4u - turn;
          if (lane < 3u) { atomicStore(&peaks[turn + lane], 0u); }`;
}
