// How what was summed in f32 becomes an f16 operand without leaving its range. The state of a head that hardly decays grows with
// the tokens, and a score with the head dimension: both are scaled by one power of two a chunk, taken out again as outputs leave.
// The power comes from a bound, not from the values: |S| <= lambda^n |S before| + n max|k| max|v|, so no pass over the state
// and no barrier is needed. It may be far too large: f16 keeps 11 bits down to 2^-14, and 2^-24 of what the bound allows is
// still 2^-39 n of one token's part. The maxima are those of the tokens so far: a lane joins only with a larger one, which few chunks bring,
// since atomics in every chunk took a fifth of the time. Workgroup memory: 16 bytes.

/** Order of the maxima in `peaks`; the last is that of the state at the start. */
const [queries, keys, values, state] = [0, 1, 2, 3];

export const peaksDeclared: string = `
      var<workgroup> peaks: array<atomic<u32>, 4>;
      fn powerOfTwo(exponent: i32) -> f32 { return bitcast<f32>(u32(exponent + 127) << 23u); }`;

/** Before the sweep. `bound`: no element of the state is larger; the largest magnitudes of the tokens so far. */
export const rangeVariables: string = `
        var bound = 0.0;
        var mostQ = 0.0;
        var mostK = 0.0;
        var mostV = 0.0;
        var down = 1.0;
        var outFactor = 1.0;`;

/** Takes part in the maximum at `slot` where it is above `most`; floats >= 0 order as their bits do. Few chunks bring a new one. */
function join(slot: number, value: string, most: string): string {
  return `if (${value} > ${most}) { atomicMax(&peaks[${slot}], bitcast<u32>(${value})); }`;
}

/** A lane's share of the initial state, `peak`, joins; behind a barrier `boundFromInitial` reads it. */
export function joinInitial(peak: string): string {
  return join(state, peak, '0.0');
}

export const boundFromInitial: string = `bound = bitcast<f32>(atomicLoad(&peaks[${state}]));`;

/** As a chunk is put into workgroup memory: its maxima join. `peak` makes that of a lane. */
export function joinChunk(peak: Record<'q' | 'k' | 'v', (name: string) => string>): string {
  return `
          ${peak.q('peakQ')} ${peak.k('peakK')} ${peak.v('peakV')}
          ${join(queries, 'peakQ', 'mostQ')}
          ${join(keys, 'peakK', 'mostK')}
          ${join(values, 'peakV', 'mostV')}`;
}

/**
 * Behind `chunkRange`: `shrink`, the power of two that scales keys so that neither they nor what `chunk` tokens add to the state leave f16,
 * up as well as down, since f16 sums of small products would lose bits; `unshrink` undoes it.
 */
export function addedRange(chunk: number): string {
  return `
          let excessAdded = clamp(i32(bitcast<u32>(max(scaledK, ${chunk}.0 * scaledK * mostV)) >> 23u) - 141, -110, 110);
          shrink = powerOfTwo(-excessAdded);
          unshrink = powerOfTwo(excessAdded);`;
}

/** As tokens that only lead in are put into workgroup memory: the maxima of their keys and values join. */
export function joinLead(peak: Record<'k' | 'v', (name: string) => string>): string {
  return `
          ${peak.k('peakK')} ${peak.v('peakV')}
          ${join(keys, 'peakK', 'mostK')}
          ${join(values, 'peakV', 'mostV')}`;
}

/** Behind the barrier: the bound behind a chunk that only leads in. */
export const leadRange: string = `
          mostK = bitcast<f32>(atomicLoad(&peaks[${keys}]));
          mostV = bitcast<f32>(atomicLoad(&peaks[${values}]));
          bound = bound * whole + f32(held) * mostK * abs(uniforms.keyScale) * mostV;`;

/**
 * Behind the barrier: `down`, the power of two that scales the state and the scores of this chunk, and `up`, what outputs are
 * multiplied by; the bound behind the chunk.
 * @param gain outputs are multiplied by what lies behind the decays, too (see cotangent.ts)
 */
export function chunkRange(keyDim: number, gain: boolean): string {
  return `
          mostQ = bitcast<f32>(atomicLoad(&peaks[${queries}]));
          mostK = bitcast<f32>(atomicLoad(&peaks[${keys}]));
          mostV = bitcast<f32>(atomicLoad(&peaks[${values}]));
          let scaledK = mostK * abs(uniforms.keyScale);
          // the exponent of the bound above 2^14, from its bits: what is scaled stays under 2^15, and small sums keep their bits
          let excess = clamp(i32(bitcast<u32>(max(bound, mostQ * scaledK * ${keyDim}.0)) >> 23u) - 141, -110, 110);
          down = powerOfTwo(-excess);
          let up = powerOfTwo(excess) * uniforms.stateScale * uniforms.queryScale${gain ? ' * load_decay(uniforms.heads)' : ''};
          bound = bound * whole + f32(held) * scaledK * mostV;`;
}
