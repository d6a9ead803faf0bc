import type { BufferWindow } from '../device/bind-groups.js';
import type { Device } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import type { DType } from '../dtype.js';
import { checkApart, firstItem, unusable, windowOf } from './bind.js';
import type { Operand, ResolvedBinding, Spec } from './bindings.js';
import type { Bindings, Kernel, KernelDefinition, Operands, RunOptions, Uniforms, UniformValues } from './definition.js';
import { resolveGrid, type WantedGrid } from './grid.js';
import { compile, type Prepared } from './prepare.js';
import { packUniforms } from './uniforms.js';

/** A specialisation with what it was made for. */
interface Made extends Prepared {
  /** As it was given: a spec is a value, nobody changes one. */
  spec: Spec;
  /** Fields of the spec. */
  fields: number;
  /** A dtype for each declared binding. */
  dtypes: readonly (DType | undefined)[];
  /** The buffers that the run at hand binds. */
  storages: Storage[];
  /** The other one that ran behind it last: steps repeat. */
  follower: Made | undefined;
}

interface Cache {
  /** Undefined where a run must pack its outputs. */
  all: Map<string, Made | undefined>;
  /** The last few that were looked for, the newest first: comparing fields costs less than making a key. */
  recent: Made[];
  /** The one that ran last. */
  last: Made | undefined;
}

const mostRecent = 16;
let kernels = 0;

/** What a kernel does about outputs whose dtype has no store on the device. */
export interface Packing<S extends Spec> {
  needed: (device: Device, spec: S, operands: Operands) => boolean;
  run: (kernel: KernelRunner<S>, device: Device, spec: S, operands: Operands, values: UniformValues, grid: WantedGrid) => boolean;
}

/** Records dispatches of one kernel, each specialisation compiled on its first use. */
export class KernelRunner<S extends Spec, B extends Bindings<S> = Bindings<S>, U extends Uniforms = Uniforms> implements Kernel<S, B, U> {
  readonly name: string;
  private readonly number = kernels++;
  private readonly names: readonly string[];
  private readonly uniformNames: readonly string[];

  constructor(
    private readonly definition: KernelDefinition<S, B, U>,
    private readonly packing?: Packing<S>,
  ) {
    this.name = definition.name;
    this.names = Object.keys(definition.bindings);
    this.uniformNames = Object.keys(definition.uniforms);
  }

  run(device: Device, { spec, tensors, uniforms, grid }: RunOptions<S, B, U>): void {
    this.runListed(device, spec, listed(this.names, tensors), listed(this.uniformNames, uniforms), grid);
  }

  // One long function on purpose: it runs for each dispatch, and V8 takes long functions to its optimiser after fewer calls.
  runListed(device: Device, spec: S, operands: Operands, values: UniformValues, wanted: WantedGrid): boolean {
    const { name } = this;
    const cache = (device.prepared[this.number] ??= { all: new Map(), recent: [], last: undefined }) as Cache;
    let made = cache.last;
    if (made === undefined || !fits(made, spec, operands)) {
      made = this.prepare(cache, device, spec, operands);
      if (made === undefined) return (this.packing as Packing<S>).run(this as never, device, spec, operands, values, wanted);
    }
    const { pipeline, layout, bindings, storages } = made;
    const { pool, recorder } = device;
    const bindingLimit = device.limits.maxStorageBufferBindingSize;
    const at = recorder.uniformRoom(layout.slots);
    const items = at + layout.firstItem;
    let windows: (BufferWindow | undefined)[] | undefined;
    let hash = pipeline.layout.number;
    for (let i = 0; i < bindings.length; i++) {
      const binding = bindings[i] as ResolvedBinding;
      const operand = operands[binding.index] as Operand;
      const { storage, offset } = operand;
      if (storage.owner !== pool || storage.references <= 0) throw unusable(device, name, binding, operand);
      let item = 0;
      if (storage.bytes > bindingLimit) {
        const window = windowOf(operand, binding, name, bindingLimit);
        (windows ??= new Array<BufferWindow | undefined>(bindings.length))[i] = window;
        item = firstItem(operand, binding, name, window.offset);
      } else if (offset !== 0) item = firstItem(operand, binding, name, 0);
      recorder.words[items + i] = item;
      storages[i] = storage;
      hash = (hash << 11) ^ (hash >>> 21) ^ storage.id;
    }
    const grid = resolveGrid(device, name, wanted, storages);
    if (grid === undefined) return false;
    let bound = device.bindGroups.find(hash, pipeline.layout, storages, windows);
    if (bound === undefined) {
      checkApart(name, bindings, storages);
      bound = device.bindGroups.make(hash, pipeline.layout, storages, windows, name);
    }
    packUniforms(layout, values, recorder, at);
    if (device.attentive) device.attend(pipeline.trace);
    recorder.dispatch(pipeline, bound, layout.slots, grid);
    return true;
  }

  /** A specialisation that is not the newest: one of the last few, one from the cache, or compiled. Undefined where outputs are packed. */
  private prepare(cache: Cache, device: Device, spec: S, operands: Operands): Made | undefined {
    const { last } = cache;
    let made = last?.follower;
    if (made !== undefined && fits(made, spec, operands)) return (cache.last = made);
    made = this.find(cache, device, spec, operands);
    if (made === undefined) return undefined;
    if (last) last.follower = made;
    return (cache.last = made);
  }

  private find({ all, recent }: Cache, device: Device, spec: S, operands: Operands): Made | undefined {
    for (let i = 0; i < recent.length; i++) {
      const made = recent[i] as Made;
      if (!fits(made, spec, operands)) continue;
      recent[i] = recent[0] as Made;
      recent[0] = made;
      return made;
    }
    const dtypes = operands.map((operand) => operand?.dtype);
    let key = this.name;
    for (const name in spec) key += `|${name}=${String(spec[name])}`;
    for (const dtype of dtypes) key += `|${dtype ?? '-'}`;
    let made = all.get(key);
    if (!made) {
      if (all.has(key)) return undefined;
      if (this.packing?.needed(device, spec, operands)) {
        all.set(key, undefined);
        return undefined;
      }
      const { pipeline, layout, bindings } = compile(device, this.definition, spec, operands, key);
      made = { pipeline, layout, bindings, spec, fields: Object.keys(spec).length, dtypes, storages: [], follower: undefined };
      all.set(key, made);
    }
    recent.unshift(made);
    if (recent.length > mostRecent) recent.pop();
    return made;
  }
}

/** Values of a record in the order of `names`. */
function listed<T>(names: readonly string[], values: Readonly<Record<string, T | undefined>>): (T | undefined)[] {
  const list = new Array<T | undefined>(names.length);
  for (let i = 0; i < names.length; i++) list[i] = values[names[i] as string];
  return list;
}

function fits(made: Made, spec: Spec, operands: Operands): boolean {
  const { dtypes } = made;
  for (let i = 0; i < dtypes.length; i++) if (operands[i]?.dtype !== dtypes[i]) return false;
  return spec === made.spec || sameFields(spec, made);
}

function sameFields(spec: Spec, made: Made): boolean {
  let fields = 0;
  for (const name in spec) {
    if (spec[name] !== made.spec[name]) return false;
    fields++;
  }
  return fields === made.fields;
}
