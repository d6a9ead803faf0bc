import { HeedError } from '../errors.js';
import type { Tensor } from './tensor.js';

/** A scope that is running; it owns tensors and disposes what is left of them at its end. */
export interface Scope {
  /** The tensor that came last; each knows the one before and behind it, so that one leaves without a search or an object. */
  last: Tensor | undefined;
}

let innermost: Scope | undefined;

/** Puts a new tensor into the innermost scope, which will dispose it; false where there is none. */
export function enterScope(tensor: Tensor): boolean {
  const scope = innermost;
  if (scope === undefined) return false;
  const { last } = scope;
  tensor.owner = scope;
  tensor.before = last;
  if (last !== undefined) last.behind = tensor;
  scope.last = tensor;
  return true;
}

/** The scope that new tensors go into. */
export function innermostScope(): Scope | undefined {
  return innermost;
}

/** Disposes what a scope still owns. */
export function emptyScope(scope: Scope): void {
  while (scope.last) scope.last.dispose();
}

/** Moves a tensor from the scope that owns it to another, or to nobody. */
export function moveToScope(tensor: Tensor, scope: Scope | undefined): void {
  if (tensor.owner) leaveScope(tensor.owner, tensor);
  if (scope) join(scope, tensor);
}

function join(scope: Scope, tensor: Tensor): void {
  tensor.owner = scope;
  tensor.before = scope.last;
  if (scope.last) scope.last.behind = tensor;
  scope.last = tensor;
}

/** Takes a tensor out of the scope that owns it. */
export function leaveScope(scope: Scope, tensor: Tensor): void {
  if (tensor.before) tensor.before.behind = tensor.behind;
  if (tensor.behind) tensor.behind.before = tensor.before;
  else scope.last = tensor.before;
  tensor.owner = tensor.before = tensor.behind = undefined;
}

/**
 * Runs `work` and disposes every tensor that it made, except those in what it returns (tensors, arrays and plain objects
 * of them), which go to the enclosing scope. Tensors made before are left alone.
 * @throws HeedError INVALID_ARGUMENT when `work` returns a promise: a scope is synchronous
 */
export function scope<T>(work: () => T): T {
  const inner: Scope = { last: undefined };
  const outer = innermost;
  innermost = inner;
  try {
    const result = work();
    if (isTensor(result)) {
      if (result.owner === inner) result.handTo(outer);
      return result;
    }
    if (isThenable(result)) {
      result.then(undefined, () => {}); // it may fail later over the tensors that are freed now; this error is the one to see
      throw new HeedError(
        'INVALID_ARGUMENT',
        'core: scope was given an asynchronous function; a scope is synchronous, so await outside of it',
      );
    }
    if (typeof result === 'object' && !handList(result, inner, outer))
      for (const tensor of tensorsIn(result)) if (tensor.owner === inner) tensor.handTo(outer);
    return result;
  } finally {
    innermost = outer;
    emptyScope(inner);
  }
}

/** Hands the tensors of a plain list of them to another scope; false where `list` is anything else. */
function handList(list: unknown, from: Scope, to: Scope | undefined): boolean {
  if (!Array.isArray(list)) return false;
  for (const item of list as unknown[]) {
    if (item === null || item === undefined) continue;
    if (!isTensor(item)) return false;
    if (item.owner === from) item.handTo(to);
  }
  return true;
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function';
}

/** The tensors in a value: itself, or those in arrays, maps and plain objects, nested. */
export function tensorsIn(value: unknown, found: Set<Tensor> = new Set(), seen: Set<object> = new Set()): Set<Tensor> {
  if (typeof value !== 'object' || value === null || seen.has(value)) return found;
  if (isTensor(value)) {
    found.add(value);
    return found;
  }
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return found;
  seen.add(value);
  if (value instanceof Map || value instanceof Set) for (const item of value.values()) tensorsIn(item, found, seen);
  else if (Array.isArray(value)) for (const item of value) tensorsIn(item, found, seen);
  else if (holdsTensors in value) for (const item of (value as TensorHolder)[holdsTensors]()) tensorsIn(item, found, seen);
  else if (Object.getPrototypeOf(value) === Object.prototype || Object.getPrototypeOf(value) === null)
    for (const item of Object.values(value)) tensorsIn(item, found, seen);
  return found;
}

/** Classes whose instances own tensors (states, caches) say so by a method of this name, so that scopes keep them. */
export const holdsTensors: unique symbol = Symbol.for('@heed/holds-tensors') as never;

export interface TensorHolder {
  [holdsTensors](): Iterable<unknown>;
}

/** Registered, so that a tensor of another copy of core is still known as one and gets an error that says so. */
export const tensorBrand: unique symbol = Symbol.for('@heed/tensor') as never;

/** True for a tensor of this copy of core. @throws HeedError INVALID_ARGUMENT for one of another copy */
export function isTensor(value: unknown): value is Tensor {
  if (typeof value !== 'object' || value === null || !(tensorBrand in value)) return false;
  const brand = (value as Record<symbol, unknown>)[tensorBrand];
  if (brand !== copyOfCore) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `core: a tensor of another copy of @heed/core was given (${String(brand)}, this is ${copyOfCore}); install one copy: techniques take @heed/core as a peer dependency, check \`npm ls @heed/core\``,
    );
  }
  return true;
}

/** Names this copy of core. */
export const copyOfCore: string = `@heed/core loaded at ${new Date().toISOString()} #${Math.random().toString(36).slice(2, 8)}`;
