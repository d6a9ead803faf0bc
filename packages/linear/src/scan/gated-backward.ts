import { cast, copyInto, cumsum, mul, sum, type Tensor, zeros } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';
import { contiguousState, gatedOutputs, type GatedProblem, type GatedScan, gatedSegmentStates, gateForm, planGatedFor } from './gated.js';
import { entriesOf, type Piece, pieceOf, planPieces, spanOf } from './pieces.js';
import { rowStrides } from './strides.js';
import { lengthOf } from './text.js';

/** What the gradients of a gated scan are computed from. */
export interface GatedSaved extends GatedProblem {
  initialState?: Tensor | undefined;
  /** The state behind the last token, needed for the gate's gradient where that state has a cotangent. */
  finalState?: Tensor | undefined;
}

export interface GatedNeeds {
  q: boolean;
  k: boolean;
  v: boolean;
  gate: boolean;
  initialState: boolean;
}

type GatedGradients = { [name in keyof GatedNeeds]: Tensor | null };

/**
 * Gradients of a gated scan. With S_t the forward state and G_t = diag(exp g_(t+1)) G_(t+1) + scale q_t dOut_t^T that of the reverse
 * sweep: dq_t = scale S_t dOut_t, dk_t = G_t v_t, dv_t = G_t^T k_t, dInitial = diag(exp g_1) G_1, and for the gate
 * dg_t = sum over s >= t of (q_s dq_s - k_s dk_s), plus the final state times its cotangent: no product of states is stored
 * (Yang et al. 2023, appendix C). Deterministic: every sum has one order.
 */
export function gatedBackward(saved: GatedSaved, dOut: Tensor | null, dState: Tensor | null, needs: GatedNeeds): GatedGradients {
  const { q, k, v, gate, initialState, scale, chunk } = saved;
  const { device } = q;
  const stateShape = [q.dim(0), q.dim(2), q.dim(3), v.dim(3)];
  const last = contiguousState(dState);
  const like = (x: Tensor): Tensor => empty(device, x.shape, x.dtype);
  if (v.size === 0) {
    const initial = needs.initialState ? (last ?? zeros(device, stateShape)) : null;
    return { q: like(q), k: like(k), v: like(v), gate: like(gate), initialState: initial };
  }
  const cotangent = dOut ?? zeros(device, v.shape, { dtype: v.dtype });
  // the gate's gradient is a difference of sums over tokens: its terms stay f32
  const forGate = (x: Tensor, need: boolean): Tensor | null => (needs.gate ? empty(device, x.shape) : need ? like(x) : null);
  const grads = {
    q: forGate(q, needs.q),
    k: forGate(k, needs.k),
    v: needs.v ? like(v) : null,
    gate: needs.gate ? empty(device, gate.shape) : null,
    initialState: needs.initialState ? empty(device, stateShape) : null,
  };
  const stateTerms =
    needs.gate && last && saved.finalState
      ? sum(mul(saved.finalState, last), gate.rank === 4 ? -1 : [-2, -1], { keepDims: true })
      : undefined;
  const spans = [q, k, v, gate, cotangent, grads.q, grads.k, grads.v].flatMap((x) => (x ? [spanOf(x)] : []));
  const first = contiguousState(initialState);
  for (const pieces of planPieces(q.dim(0), q.dim(1), spans, device.limits.maxStorageBufferBindingSize)) {
    const entries = pieces[0] as Piece;
    const scans = pieces.map((piece): GatedScan & { piece: Piece } => {
      const [partQ, partK, partV, partGate] = [q, k, v, gate].map((x) => pieceOf(x, piece)) as [Tensor, Tensor, Tensor, Tensor];
      const plan = planGatedFor(partK, partV, gateForm(gate), chunk);
      const lengths = saved.lengths && entriesOf(saved.lengths, piece);
      return { q: partQ, k: partK, v: partV, gate: partGate, lengths, tokensBefore: piece.tokenFirst, plan, piece };
    });
    const own = (): Tensor => empty(device, [entries.batch, ...stateShape.slice(1)]);
    const starts: (Tensor | undefined)[] = scans.map((_, i) => (i > 0 ? own() : first && entriesOf(first, entries)));
    if (grads.q) scans.slice(0, -1).forEach((scan, i) => void gatedSegmentStates(scan, { initial: starts[i], final: starts[i + 1] }));
    let behind = last && entriesOf(last, entries);
    let gateBehind: Tensor | undefined;
    for (let i = scans.length - 1; i >= 0; i--) {
      const scan = scans[i] as GatedScan & { piece: Piece };
      const before = i > 0 ? own() : grads.initialState ? entriesOf(grads.initialState, scan.piece) : undefined;
      const part = (x: Tensor | null): Tensor | undefined => (x ? pieceOf(x, scan.piece) : undefined);
      const parts = { q: part(grads.q), k: part(grads.k), v: part(grads.v) };
      backwardPiece(scan, pieceOf(cotangent, scan.piece), scale, { initial: starts[i], behind, before }, parts);
      const dGate = part(grads.gate);
      if (dGate && parts.q && parts.k) {
        const endTerms = stateTerms && entriesOf(stateTerms, scan.piece);
        const terms = gateTerms(scan, q.dim(1), { dq: parts.q, dk: parts.k, endTerms, behind: gateBehind });
        const summed = cumsum(terms, 1, { reverse: true });
        if (summed.size === gate.size) grads.gate = summed;
        else copyInto(dGate, summed);
        gateBehind = i > 0 ? dGate : undefined;
      }
      behind = before;
    }
  }
  const handed = (gradient: Tensor | null, x: Tensor, need: boolean): Tensor | null =>
    need && gradient ? (gradient.dtype === x.dtype ? gradient : cast(gradient, x.dtype)) : null;
  return {
    q: handed(grads.q, q, needs.q),
    k: handed(grads.k, k, needs.k),
    v: grads.v,
    gate: grads.gate,
    initialState: grads.initialState,
  };
}

/** The sweeps of one piece. `behind` is the gradient of the state behind it, `before` is written with that of the state before it. */
function backwardPiece(
  scan: GatedScan,
  dOut: Tensor,
  scale: number,
  states: { initial: Tensor | undefined; behind: Tensor | undefined; before: Tensor | undefined },
  grads: { q: Tensor | undefined; k: Tensor | undefined; v: Tensor | undefined },
): void {
  const { q, k, v, plan, gate, lengths, tokensBefore } = scan;
  const serial = plan.segments === 1;
  const common = { gate, lengths, tokensBefore, plan };
  if (grads.q) {
    const initial = serial ? states.initial : gatedSegmentStates(scan, { initial: states.initial });
    gatedOutputs({ ...common, q: dOut, k: v, v: k, queryScale: scale }, { initial, transposed: true, out: grads.q });
  }
  if (!grads.k && !grads.v && !states.before) return;
  const reverse = { ...common, k: q, v: dOut, keyScale: scale, reverse: true };
  // a serial sweep of dv also leaves the state before the piece; without it the states are swept by themselves
  const alone = !serial || (!grads.v && states.before !== undefined);
  const swept = alone ? gatedSegmentStates(reverse, { initial: states.behind, final: states.before }) : undefined;
  const behind = serial ? states.behind : swept;
  if (grads.v) gatedOutputs({ ...reverse, q: k }, { initial: behind, final: serial ? states.before : undefined, out: grads.v });
  if (grads.k) gatedOutputs({ ...reverse, q: v, k: dOut, v: q }, { initial: behind, transposed: true, out: grads.k });
}

const strides = /* @__PURE__ */ rowStrides('q', 'k');

// Terms of the gate's gradient: x_t = q_t dq_t - k_t dk_t, at the last token plus what lies behind; a gate a head sums channels.
// tile    one lane a gate
// bytes   reads q, k, dq, dk once, writes one f32 a gate
// limits  terms behind the length of a batch entry are zero
const termsKernel = defineKernel({
  name: 'linear-gate-terms',
  bindings: {
    q: read<TermsSpec>('float'),
    k: read<TermsSpec>('float'),
    dq: read<TermsSpec>('f32'),
    dk: read<TermsSpec>('f32'),
    lengths: read<TermsSpec>('i32', { when: (s) => s.lengths }),
    endTerms: read<TermsSpec>('f32', { when: (s) => s.end }),
    behind: read<TermsSpec>('f32', { when: (s) => s.behind }),
    out: write<TermsSpec>('f32'),
  },
  uniforms: {
    ...strides.uniforms,
    tokens: 'u32',
    tokensBefore: 'u32',
    allTokens: 'u32',
    heads: 'u32',
    keyDim: 'u32',
    channels: 'u32',
    summed: 'u32',
    size: 'u32',
    behindBatch: 'u32',
  },
  wgsl: (s: TermsSpec) => `
    ${lengthOf(s.lengths)}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let row = i / uniforms.channels;
      let head = row % uniforms.heads;
      let token = (row / uniforms.heads) % uniforms.tokens;
      let batch = row / uniforms.heads / uniforms.tokens;
      let channel = i % uniforms.channels;
      let length = lengthOf(batch);
      var sum = 0.0;
      if (token < length) {
        let qAt = batch * uniforms.qBatch + token * uniforms.qToken + head * uniforms.qHead + channel;
        let kAt = batch * uniforms.kBatch + token * uniforms.kToken + head * uniforms.kHead + channel;
        for (var c = 0u; c < uniforms.summed; c++) {
          let at = row * uniforms.keyDim + channel + c;
          sum += load_q(qAt + c) * load_dq(at) - load_k(kAt + c) * load_dk(at);
        }
        if (token + 1u == length) {
          ${s.behind ? 'sum += load_behind(batch * uniforms.behindBatch + head * uniforms.channels + channel);' : ''}
          ${
            s.end
              ? `let end = ${s.lengths ? 'min(u32(max(load_lengths(batch), 0)), uniforms.allTokens)' : 'uniforms.allTokens'};
          if (uniforms.tokensBefore + length == end) { sum += load_endTerms((batch * uniforms.heads + head) * uniforms.channels + channel); }`
              : ''
          }
        }
      }
      store_out(i, sum);
    }`,
});

interface TermsSpec {
  [name: string]: boolean;
  lengths: boolean;
  end: boolean;
  behind: boolean;
}

/**
 * @param tensors.endTerms what the final state adds at the last token, f32 [batch, heads, channels, 1]
 * @param tensors.behind the gate's gradient in the piece behind; that of its first token is added at the last token here
 */
function gateTerms(
  { q, k, gate, lengths, tokensBefore = 0 }: GatedScan,
  allTokens: number,
  tensors: { dq: Tensor; dk: Tensor; endTerms: Tensor | undefined; behind: Tensor | undefined },
): Tensor {
  const [tokens, heads, keyDim] = [q.dim(1), q.dim(2), q.dim(3)];
  const channels = gate.rank === 4 ? keyDim : 1;
  const out = empty(q.device, gate.shape);
  termsKernel.run(q.device, {
    spec: { lengths: lengths !== undefined, end: tensors.endTerms !== undefined, behind: tensors.behind !== undefined },
    tensors: { q, k, lengths, ...tensors, out },
    uniforms: {
      tokens,
      tokensBefore,
      allTokens,
      heads,
      keyDim,
      channels,
      summed: keyDim / channels,
      size: out.size,
      behindBatch: tensors.behind?.strides[0] ?? 0,
      ...strides.values({ q, k }),
    },
    grid: [Math.ceil(out.size / 256)],
  });
  return out;
}
