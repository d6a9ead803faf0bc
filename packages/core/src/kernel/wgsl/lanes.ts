import type { Capabilities } from '../../device/capabilities.js';

// Reductions over the lanes of a workgroup, several rows a workgroup: every lane of a row gets the row's result. The order is
// fixed by the lane numbers and the subgroup size, so results repeat bit for bit on one device.

export type LaneScalar = 'f32' | 'i32' | 'u32';

/** What is reduced: a state of one or two scalars and how two states join. */
export interface LaneState {
  /** Types of the fields `a` and, where there is a second, `b`. */
  parts: readonly [LaneScalar] | readonly [LaneScalar, LaneScalar];
  /** Body of a function of states `x` and `y` that returns their join; `S` is the name of the state type. Works on vectors, too. */
  combine: (S: string) => string;
  /** Body of a function of a state `x` that returns the join over the subgroup. */
  subgroup: string;
}

/** `memory`: workgroup memory. `shuffle`: a row lies inside a subgroup. `subgroups`: a row is whole subgroups. */
export type LaneForm = 'memory' | 'shuffle' | 'subgroups';

/** The form for rows of `lanes` lanes (a power of two). */
export function laneForm(lanes: number, capabilities: Capabilities): LaneForm {
  if (!capabilities.subgroups) return 'memory';
  if (lanes <= capabilities.subgroupMinSize) return 'shuffle';
  return lanes % capabilities.subgroupMaxSize === 0 ? 'subgroups' : 'memory';
}

/** Lanes for rows of `items` items: one of four numbers, so that kernels are few; each lane has two items or more where lanes repeat. */
export function lanesFor(items: number): 1 | 8 | 32 | 256 {
  return items <= 2 ? 1 : items <= 16 ? 8 : items <= 128 ? 32 : 256;
}

/** Built-in values that `main` takes for a form. */
export function laneBuiltins(form: LaneForm): string {
  return form === 'subgroups' ? ', @builtin(subgroup_size) subgroupSize: u32, @builtin(subgroup_invocation_id) subgroupLane: u32' : '';
}

/** Arguments that `reduceLanes` takes after the state and the lane. */
export function laneArguments(form: LaneForm): string {
  return form === 'subgroups' ? ', subgroupSize, subgroupLane' : '';
}

/**
 * `struct State`, `fn combine(x: State, y: State) -> State` and
 * `fn reduceLanes(own: State, lane: u32<laneArguments>) -> State`, for a workgroup of `invocations` lanes.
 */
export function lanesWgsl(state: LaneState, form: LaneForm, lanes: number, invocations: number): string {
  const [a, b] = state.parts;
  const struct = `struct State { a: ${a}${b ? `, b: ${b}` : ''} }`;
  const combine = `fn combine(x: State, y: State) -> State { ${state.combine('State')} }`;
  if (lanes === 1) return `${struct}\n${combine}\nfn reduceLanes(own: State, lane: u32) -> State { return own; }`;
  if (form === 'shuffle') {
    const steps: number[] = [];
    for (let step = lanes / 2; step >= 1; step /= 2) steps.push(step);
    return `${struct}\n${combine}
fn reduceLanes(own: State, lane: u32) -> State {
  var all = own;
  ${steps.map((s) => `all = combine(all, State(subgroupShuffleXor(all.a, ${s}u)${b ? `, subgroupShuffleXor(all.b, ${s}u)` : ''}));`).join('\n  ')}
  return all;
}`;
  }
  const slots = Math.max(4, invocations);
  const memory = `var<workgroup> laneA: array<${a}, ${slots}>;${b ? `\nvar<workgroup> laneB: array<${b}, ${slots}>;` : ''}
fn putLane(slot: u32, x: State) { laneA[slot] = x.a;${b ? ' laneB[slot] = x.b;' : ''} }
fn getLane(slot: u32) -> State { return State(laneA[slot]${b ? ', laneB[slot]' : ''}); }`;
  if (form === 'subgroups') {
    return `${struct}\n${combine}\n${memory}
fn joinSubgroup(x: State) -> State { ${state.subgroup} }
fn reduceLanes(own: State, lane: u32, subgroupSize: u32, subgroupLane: u32) -> State {
  let part = joinSubgroup(own);
  if (subgroupLane == 0u) { putLane(lane / subgroupSize, part); }
  workgroupBarrier();
  let first = (lane & ${-lanes >>> 0}u) / subgroupSize;
  var all = getLane(first);
  for (var i = 1u; i < ${lanes}u / subgroupSize; i++) { all = combine(all, getLane(first + i)); }
  workgroupBarrier();
  return all;
}`;
  }
  if (lanes <= 16) {
    return `${struct}\n${combine}\n${memory}
fn reduceLanes(own: State, lane: u32) -> State {
  putLane(lane, own);
  workgroupBarrier();
  let first = lane & ${-lanes >>> 0}u;
  var all = getLane(first);
  let end = min(first + ${lanes}u, ${slots}u);
  for (var i = first + 1u; i < end; i++) { all = combine(all, getLane(i)); }
  workgroupBarrier();
  return all;
}`;
  }
  // Two barriers, not one a halving: blocks of 16 first, then the blocks of the row. Bounds are no literals: unrolled, the loops
  // would take compilers seconds.
  return `${struct}\n${combine}\n${memory}
var<workgroup> blockA: array<${a}, 16>;${b ? `\nvar<workgroup> blockB: array<${b}, 16>;` : ''}
fn reduceLanes(own: State, lane: u32) -> State {
  putLane(lane, own);
  workgroupBarrier();
  if ((lane & 15u) == 0u) {
    var part = own;
    let end = min(lane + 16u, ${slots}u);
    for (var i = lane + 1u; i < end; i++) { part = combine(part, getLane(i)); }
    blockA[lane >> 4u] = part.a;${b ? ' blockB[lane >> 4u] = part.b;' : ''}
  }
  workgroupBarrier();
  let first = (lane & ${-lanes >>> 0}u) >> 4u;
  var all = State(blockA[first]${b ? ', blockB[first]' : ''});
  let end = min(first + ${lanes / 16}u, 16u);
  for (var i = first + 1u; i < end; i++) { all = combine(all, State(blockA[i]${b ? ', blockB[i]' : ''})); }
  return all;
}`;
}

/** A sum. */
export const sumState: LaneState = {
  parts: ['f32'],
  combine: (S) => `return ${S}(x.a + y.a);`,
  subgroup: 'return State(subgroupAdd(x.a));',
};

/** Two sums. */
export const sumPairState: LaneState = {
  parts: ['f32', 'f32'],
  combine: (S) => `return ${S}(x.a + y.a, x.b + y.b);`,
  subgroup: 'return State(subgroupAdd(x.a), subgroupAdd(x.b));',
};

/** Maximum and sum of exponentials below it: the online normaliser of Milakov and Gimelshein 2018, algorithm 3. */
export const softmaxState: LaneState = {
  parts: ['f32', 'f32'],
  // one of the two factors is 1
  combine: (S) =>
    `let e = exp(-abs(x.a - y.a)); let s = x.a >= y.a; return ${S}(max(x.a, y.a), select(x.b * e, x.b, s) + select(y.b, y.b * e, s));`,
  subgroup: 'let m = subgroupMax(x.a); return State(m, subgroupAdd(x.b * exp(x.a - m)));',
};
