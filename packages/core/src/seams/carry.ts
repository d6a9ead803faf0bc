/** A typed key of a `Carry`: made once by the technique that owns it. */
export interface CarrySlot<T> {
  readonly name: string;
  /** Never set; ties the type to the key. */
  readonly type?: T;
}

/** A slot of its own for values of type `T`. */
export function carrySlot<T>(name: string): CarrySlot<T> {
  return Object.freeze({ name });
}

/**
 * What the layers of one forward pass hand on: alive tokens of a cascade, pages that a selecting layer chose. Made for
 * each pass; values live as long as the pass.
 */
export class Carry {
  private readonly values: Map<CarrySlot<unknown>, unknown> = new Map();

  /** The value of a slot; undefined where no layer before has set it. */
  get<T>(slot: CarrySlot<T>): T | undefined {
    return this.values.get(slot) as T | undefined;
  }

  /** Hands a value on to the layers behind. */
  set<T>(slot: CarrySlot<T>, value: T): void {
    this.values.set(slot, value);
  }
}
