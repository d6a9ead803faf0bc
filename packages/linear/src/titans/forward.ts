import {
  broadcastTo,
  cast,
  checkpoint,
  concat,
  div,
  l2norm,
  matmul,
  mul,
  pad,
  permute,
  pointwise,
  reshape,
  scope,
  slice,
  split,
  sub,
  tanh,
  type Tensor,
  unsqueeze,
  zeros,
} from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { memoryOf, type MemoryForm, recall, surprises, tensorsOf } from './memory.js';
import { checkArguments, ordersOf, type TitansForm, type TitansMemoryState, type TitansOptions } from './options.js';
import { planTitans, type TitansGroup } from './plan.js';
import { weightRecurrence } from './recurrence.js';

/**
 * Neural long-term memory (Behrouz et al. 2024, section 3): a small network whose weights are the state. Each chunk n of keys and
 * values gives the gradient g_n of sum theta_t |f(k_t) - v_t|^2; u_n = eta_n u_(n-1) - g_n, W_n = (1 - alpha_n) W_(n-1) + u_n;
 * token t reads o_t = f_W(q_t) behind floor((t + 1) / chunkSize) chunks, so the last token of a chunk sees it already. Tokens
 * behind the last whole chunk are not stored.
 * @param q [batch, tokens, heads, headDim], f32 or f16; any outer strides
 * @param k as q; normalise keys, or steps diverge
 * @param v as q
 * @returns [batch, tokens, heads, headDim], dtype of v; differentiable in q, k, v, rates, memory and the initial state
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function titans(q: Tensor, k: Tensor, v: Tensor, options: TitansOptions): Tensor {
  checkArguments('titans', q, k, v, options);
  return scope(() => runTitans(q, k, v, options, 0).out);
}

/**
 * As `titans`, and the memory behind the last whole chunk, which is `initialState` of what follows: cut sequences at multiples of
 * chunkSize, or stream them.
 * @returns out as `titans`, and the state
 * @throws HeedError what `titans` throws
 */
export function titansWithState(q: Tensor, k: Tensor, v: Tensor, options: TitansOptions): { out: Tensor; state: TitansMemoryState } {
  checkArguments('titansWithState', q, k, v, options);
  return scope(() => runTitans(q, k, v, options, 0));
}

/**
 * What a memory gives for queries, without storing anything: f_W(q).
 * @param q [batch, tokens, heads, headDim]
 * @returns the shape of q, f32
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function titansRetrieve(q: Tensor, state: Pick<TitansMemoryState, 'memory'>, form: Partial<TitansForm> = {}): Tensor {
  return scope(() => permute(recall(state.memory, permute(q, [0, 2, 1, 3]), memoryForm(form)), [0, 2, 1, 3]));
}

/** The learned start as the state of a batch. */
export function titansInitialState(options: Pick<TitansOptions, 'memory'>, batch: number, orders: number): TitansMemoryState {
  const { memory } = options;
  const tensors = tensorsOf(memory);
  const spread = memoryOf(
    tensors.map((w) => broadcastTo(unsqueeze(w, 0), [batch, ...w.shape])),
    memory.gamma !== undefined,
  );
  const momentum = Array.from({ length: orders }, () => tensors.map((w) => zeros(w.device, [batch, ...w.shape])));
  return { memory: spread, momentum, point: spread, chunks: 0 };
}

function memoryForm({ activation = 'gelu', lnEpsilon = 1e-5, precision = 'f32' }: Partial<TitansForm>): MemoryForm {
  return { activation, lnEpsilon, precision };
}

/** Bytes that the weights of the chunks in flight take, a tensor. */
const flightBytes = 256 * 1024 * 1024;

/**
 * The recurrence over `pending` tokens of k, v and rate that were not stored yet, and the new ones; q has the new ones only.
 * Arguments are checked.
 */
export function runTitans(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: TitansOptions,
  pending: number,
): { out: Tensor; state: TitansMemoryState } {
  const [batch, tokens, heads] = q.shape as [number, number, number];
  const { chunkSize, gradientPeriod = null, lossReduction = 'mean', forget, learningRate, transition } = options;
  const orders = ordersOf(options.momentum);
  const residual = options.memory.gamma !== undefined;
  const form = memoryForm(options);
  let state = options.initialState ?? titansInitialState(options, batch, orders.length);
  const largest = Math.max(...tensorsOf(state.memory).map((w) => w.size * 4), 1);
  const plan = planTitans({
    pending,
    tokens,
    chunkSize,
    period: gradientPeriod === null ? null : gradientPeriod / chunkSize,
    chunksBefore: state.chunks,
    inFlight: options.inFlight ?? Math.max(1, Math.floor(Math.min(flightBytes, q.device.limits.maxStorageBufferBindingSize) / largest)),
  });
  const sizes = plan.groups.map((group) => group.chunks);
  const rows = sizes.map((chunks) => chunks * chunkSize);
  const parts = (x: Tensor, counts: readonly number[]): Tensor[] => (counts.length > 1 ? split(x, counts, 1) : [x]);
  const behind = plan.tail > 0 ? [plan.tail] : [];
  const keys = parts(k, [...rows, ...behind]);
  const values = parts(v, [...rows, ...behind]);
  const rates = parts(learningRate, [...rows, ...behind]);
  const forgets = parts(forget, sizes);
  const etas = orders.map((eta) => parts(eta, sizes));
  const queries =
    plan.groups.length > 0
      ? parts(
          pad(q, [
            [0, 0],
            [plan.padding, 0],
          ]),
          [...rows, plan.rest],
        )
      : [q];
  const outs: Tensor[] = [];
  let skipped = 0;
  plan.groups.forEach((group, i) => {
    const reads = group.padding < group.chunks * chunkSize;
    const eta = etas.map((list) => list[i] as Tensor);
    const given = { group, reads, residual, form, factor: lossReduction === 'mean' ? 2 / q.dim(3) : 2, options };
    const inputs = [queries[i], keys[i], values[i], rates[i], forgets[i], ...eta] as Tensor[];
    const tensors = [...inputs, ...tensorsOf(state.point), ...tensorsOf(state.memory), ...state.momentum.flat()];
    const run = (...list: readonly Tensor[]): readonly Tensor[] => runGroup(list, orders.length, given);
    const made = options.recompute && currentTape() ? checkpoint(run)(...tensors) : run(...tensors);
    const rest = [...made];
    if (reads) outs.push(rest.shift() as Tensor);
    else skipped += group.chunks * chunkSize;
    const count = tensorsOf(state.memory).length;
    state = {
      memory: memoryOf(rest.slice(0, count), residual),
      momentum: orders.map((_, o) => rest.slice((o + 1) * count, (o + 2) * count)),
      point: state.point,
      chunks: state.chunks + group.chunks,
    };
    if (group.moves) state = moved(state, transition, residual);
  });
  if (plan.rest > 0 || outs.length === 0) outs.push(recall(state.memory, permute(queries.at(-1) as Tensor, [0, 2, 1, 3]), form));
  const all = outs.length === 1 ? (outs[0] as Tensor) : concat(outs, 2);
  const padding = plan.padding - skipped;
  const own = padding > 0 ? slice(all, 2, padding) : all;
  const out = permute(own, [0, 2, 1, 3]);
  return { out: reshape(cast(out, v.dtype), [batch, tokens, heads, q.dim(3)]), state };
}

interface GroupForm {
  group: TitansGroup;
  reads: boolean;
  residual: boolean;
  form: MemoryForm;
  factor: number;
  options: TitansForm;
}

/** One group of chunks whose gradients are all taken at one point: outputs of its queries, weights and momentum behind it. */
function runGroup(list: readonly Tensor[], orders: number, given: GroupForm): readonly Tensor[] {
  const { residual, form, factor, group, options } = given;
  const [q, k, v, rate, forget, ...others] = list as [Tensor, Tensor, Tensor, Tensor, Tensor, ...Tensor[]];
  const etas = others.slice(0, orders).map((eta) => permute(eta, [0, 2, 1]));
  const count = (others.length - orders) / (2 + orders);
  const tensor = (which: number): Tensor[] => others.slice(orders + which * count, orders + (which + 1) * count);
  const byHead = (x: Tensor): Tensor => permute(x, [0, 2, 1, 3]);
  const steps = unsqueeze(permute(rate, [0, 2, 1]), 3);
  const point = memoryOf(tensor(0), residual);
  const found = surprises(point, byHead(k), byHead(v), steps, { chunks: group.chunks, factor }, form);
  const keep = permute(sub(1, forget), [0, 2, 1]);
  const lasts: Tensor[][] = Array.from({ length: orders + 1 }, () => []);
  const before = found.map((g, i) => {
    let update = options.gradientClamp === undefined ? g : clamped(g, options.gradientClamp);
    etas.forEach((eta, o) => {
      const { states, last } = weightRecurrence(eta, update, tensor(2 + o)[i] as Tensor, false);
      lasts[o + 1]?.push(last);
      update = states;
    });
    if (options.orthogonalize && g.rank === 5) update = orthogonal(update);
    const { states, last } = weightRecurrence(keep, update, tensor(1)[i] as Tensor, true);
    lasts[0]?.push(last);
    return states;
  });
  if (!given.reads) return lasts.flat();
  const [batch, heads] = [k.dim(0), k.dim(2)];
  const asked = reshape(byHead(q), [batch, heads, group.chunks, q.dim(1) / group.chunks, q.dim(3)]);
  const out = recall(memoryOf(before, residual), asked, form);
  return [reshape(out, [batch, heads, q.dim(1), q.dim(3)]), ...lasts.flat()];
}

const mixed = pointwise((from, to, gate) => from.add(to.sub(from).mul(gate)), { name: 'titans-transition' });

/** The gradient point moves to the present weights; with a transition gate these are drawn towards where it was. */
function moved(state: TitansMemoryState, transition: Tensor | undefined, residual: boolean): TitansMemoryState {
  if (!transition) return { ...state, point: state.memory };
  const from = tensorsOf(state.point);
  const memory = memoryOf(
    tensorsOf(state.memory).map((w, i) => mixed(from[i] as Tensor, w, transition)),
    residual,
  );
  return { ...state, memory, point: memory };
}

/** g most tanh(|g| / most) / |g|, the norm over the tensor of one chunk. */
function clamped(g: Tensor, most: number): Tensor {
  const axes = g.rank === 5 ? [3, 4] : [3];
  const size = l2norm(g, axes, { keepDims: true });
  return mul(g, div(mul(tanh(mul(size, 1 / most)), most), atLeast(size, 1e-12)));
}

const atLeast = pointwise((x, least) => x.max(least), { name: 'titans-at-least' });
const quintic = pointwise((a, squared) => a.mul(-4.775).add(squared.mul(2.0315)), { name: 'titans-newton-schulz' });

/** Five Newton-Schulz steps (3.4445, -4.775, 2.0315) towards the nearest orthogonal matrix. */
function orthogonal(update: Tensor): Tensor {
  const wide = update.dim(-2) <= update.dim(-1);
  let t = div(update, atLeast(l2norm(update, [-2, -1], { keepDims: true }), 1e-7));
  for (let i = 0; i < 5; i++) {
    const a = wide ? matmul(t, t, { transposeB: true }) : matmul(t, t, { transposeA: true });
    const b = quintic(a, matmul(a, a));
    t = matmul(wide ? b : t, wide ? t : b, { addTo: mul(t, 3.4445) });
  }
  return t;
}
