import { HeedError } from '../errors.js';
import { emptyScope, innermostScope, scope, type Scope } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';

/** Cotangents of an op's outputs to gradients of its inputs; null where there is none. */
export type Backward = (
  cotangents: (Tensor | null)[],
  context: { saved: readonly Tensor[]; needs: readonly boolean[] },
) => readonly (Tensor | null)[];

/** One application of an op. */
export interface OpCall<R extends Tensor | readonly Tensor[]> {
  name: string;
  inputs: readonly Tensor[];
  /** Computes the outputs. Runs in a scope of its own with recording off: everything else that it makes is freed. */
  forward: () => R;
  /** Tensors that backward needs: inputs or outputs. They are kept until the backward of this op has run. */
  saves?: (outputs: readonly Tensor[]) => readonly Tensor[];
  /** Absent where the op has no gradient: a tracked input then throws at once. */
  backward?: Backward;
}

interface TapeNode {
  name: string;
  inputs: readonly number[];
  outputs: readonly number[];
  saved: Tensor[];
  backward: Backward;
}

/** What happened inside one call of `valueAndGrad`, in order. */
export class Tape {
  private readonly nodes: TapeNode[] = [];
  private readonly tracked: Set<number> = new Set();
  /** Owns saved tensors and cotangents. */
  private readonly held: Scope = { last: undefined };
  private done = false;

  track(tensor: Tensor): void {
    this.tracked.add(tensor.id);
  }

  isTracked(tensor: Tensor): boolean {
    return this.tracked.has(tensor.id);
  }

  add(call: OpCall<Tensor | readonly Tensor[]>, outputs: readonly Tensor[], backward: Backward): void {
    const saved = (call.saves?.(outputs) ?? []).map((t) => this.hold(t.alias()));
    this.nodes.push({ name: call.name, inputs: call.inputs.map((t) => t.id), outputs: outputs.map((t) => t.id), saved, backward });
    for (const out of outputs) this.tracked.add(out.id);
  }

  /**
   * Runs the tape backwards from cotangents by tensor id; gives the gradients of `wanted` ids. Saved tensors are freed as
   * their op is passed. The result's tensors go into the innermost scope.
   */
  backward(seeds: Map<number, Tensor>, wanted: ReadonlySet<number>, add: (a: Tensor, b: Tensor) => Tensor): Map<number, Tensor> {
    if (this.done)
      throw new HeedError(
        'INVALID_ARGUMENT',
        'autodiff: the backward of this tape has run already; its saved tensors are freed, call the function again',
      );
    this.done = true;
    const cotangents = new Map<number, Tensor>();
    for (const [id, seed] of seeds) cotangents.set(id, this.hold(seed.alias()));
    try {
      for (let node = this.nodes.pop(); node; node = this.nodes.pop()) {
        const given = node.outputs.map((id) => cotangents.get(id) ?? null);
        if (given.some((t) => t !== null)) this.step(node, given, cotangents, add);
        for (const id of node.outputs) {
          if (wanted.has(id)) continue;
          cotangents.get(id)?.dispose();
          cotangents.delete(id);
        }
        for (const t of node.saved) t.dispose();
      }
      const result = new Map<number, Tensor>();
      for (const id of wanted) {
        const gradient = cotangents.get(id);
        gradient?.handTo(innermostScope());
        if (gradient) result.set(id, gradient);
      }
      return result;
    } finally {
      this.dispose();
    }
  }

  /** Frees what is held; for a tape that is not run backwards. */
  dispose(): void {
    this.done = true;
    emptyScope(this.held);
    this.nodes.length = 0;
  }

  private hold(tensor: Tensor): Tensor {
    tensor.handTo(this.held);
    return tensor;
  }

  private step(node: TapeNode, given: (Tensor | null)[], cotangents: Map<number, Tensor>, add: (a: Tensor, b: Tensor) => Tensor): void {
    const needs = node.inputs.map((id) => this.tracked.has(id));
    const gradients = withoutTape(() => scope(() => [...node.backward(given, { saved: node.saved, needs })]));
    gradients.forEach((gradient, i) => {
      const id = node.inputs[i];
      if (gradient === null || id === undefined || !needs[i]) return;
      const before = cotangents.get(id);
      // a backward may hand on the cotangent it was given, or one gradient for two inputs: own a handle of it
      cotangents.set(id, this.hold(before ? withoutTape(() => add(before, gradient)) : gradient.alias()));
      before?.dispose();
    });
    for (const gradient of new Set(gradients)) if (gradient && !given.includes(gradient)) gradient.dispose();
  }
}

let current: Tape | null = null;

/** The tape of the innermost `valueAndGrad` or `checkpoint`, if recording is on. */
export function currentTape(): Tape | null {
  return current;
}

export function withTape<T>(tape: Tape | null, work: () => T): T {
  const outer = current;
  current = tape;
  try {
    return work();
  } finally {
    current = outer;
  }
}

export function withoutTape<T>(work: () => T): T {
  return withTape(null, work);
}

/**
 * Applies an op: computes its outputs and, when an input is tracked, records how to go back.
 * @throws HeedError UNSUPPORTED when an input is tracked and the op has no gradient
 */
export function apply<R extends Tensor | readonly Tensor[]>(call: OpCall<R>): R {
  const tape = currentTape();
  const { inputs } = call;
  const tracked = tape !== null && inputs.some((t) => tape.isTracked(t));
  if (tracked && !call.backward) {
    throw new HeedError(
      'UNSUPPORTED',
      `${call.name}: an input is being differentiated, and ${call.name} has no gradient; wrap the input in stopGradient() if none is wanted`,
    );
  }
  sameDevices(call.name, inputs);
  const made = tape ? withoutTape(() => scope(call.forward)) : scope(call.forward);
  // an op that has nothing to do gives its input back: on the tape it is a tensor of its own
  const own = (t: Tensor): Tensor => (inputs.includes(t) ? t.alias() : t);
  const result = (made instanceof Tensor ? own(made) : (made as readonly Tensor[]).map(own)) as R;
  if (tape && tracked && call.backward) {
    const outputs: readonly Tensor[] = result instanceof Tensor ? [result] : (result as readonly Tensor[]);
    tape.add(call, outputs, call.backward);
  }
  return result;
}

/** @throws HeedError INVALID_ARGUMENT when inputs are of two devices */
export function sameDevices(name: string, inputs: readonly Tensor[]): void {
  for (let i = 1; i < inputs.length; i++) sameDevice(name, inputs[0], inputs[i] as Tensor);
}

function sameDevice(name: string, a: Tensor | undefined, b: Tensor): void {
  if (a && a.device !== b.device) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${name}: tensors ${a.describe()} and ${b.describe()} are of two devices ("${a.device.report.name}", "${b.device.report.name}"); move one over by read() and tensor()`,
    );
  }
}
