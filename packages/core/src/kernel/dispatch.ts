import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import { bindOperands, type Place } from './bind.js';
import type { Operand, Spec } from './bindings.js';
import type { Bindings, KernelDefinition, RunOptions, Uniforms } from './definition.js';
import { resolveGrid } from './grid.js';
import { compile, type Prepared } from './prepare.js';
import { packUniforms } from './uniforms.js';

/** Records dispatches of one kernel, each specialisation compiled on its first use. */
export interface DirectKernel<S extends Spec, B extends Bindings<S>, U extends Uniforms> {
  /** Operands must have a dtype that the kernel's bindings store as they are. False where the grid is empty and nothing was recorded. */
  run(device: Device, options: RunOptions<S, B, U>): boolean;
}

/** A specialisation with what it was made for. */
interface Made extends Prepared {
  spec: Spec;
  /** Fields of the spec. */
  fields: number;
  /** A dtype for each declared binding. */
  dtypes: readonly (DType | undefined)[];
  /** Where its bindings lie in the run at hand. */
  places: Place[];
}

interface Cache {
  all: Map<string, Made>;
  /** The last few that ran, the newest first: comparing fields costs less than making a key. */
  recent: Made[];
}

const mostRecent = 6;
let kernels = 0;

/** A kernel without what `defineKernel` adds for dtypes that have no scalar store. */
export function directKernel<S extends Spec, const B extends Bindings<S>, const U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): DirectKernel<S, B, U> {
  const number = kernels++;
  const names = Object.keys(definition.bindings);

  function prepare(device: Device, spec: S, tensors: RunOptions<S, B, U>['tensors']): Made {
    const cache = (device.prepared[number] ??= { all: new Map(), recent: [] }) as Cache;
    const { recent } = cache;
    for (let i = 0; i < recent.length; i++) {
      const made = recent[i] as Made;
      if (!fits(made, spec, names, tensors)) continue;
      if (i > 0) {
        recent[i] = recent[0] as Made;
        recent[0] = made;
      }
      return made;
    }
    let key = definition.name;
    for (const name in spec) key += `|${name}=${String(spec[name])}`;
    for (const name of names) key += `|${tensors[name]?.dtype ?? '-'}`;
    let made = cache.all.get(key);
    if (!made) {
      const dtypes = names.map((name) => tensors[name]?.dtype);
      made = {
        ...compile(device, definition, spec, tensors, key),
        spec: { ...spec },
        fields: Object.keys(spec).length,
        dtypes,
        places: [],
      };
      cache.all.set(key, made);
    }
    recent.unshift(made);
    if (recent.length > mostRecent) recent.pop();
    return made;
  }

  function run(device: Device, { spec, tensors, uniforms, grid: wanted }: RunOptions<S, B, U>): boolean {
    const { name } = definition;
    const { pipeline, layout, bindings, places, trace } = prepare(device, spec, tensors);
    bindOperands(device, name, bindings, tensors, places);
    const grid = resolveGrid(device, name, wanted, places);
    if (grid === undefined) return false;
    const bound = device.bindGroups.get(pipeline.layout, places, name);
    const { recorder } = device;
    const uniformOffset = recorder.uniformSlot(layout.bytes);
    packUniforms(layout, uniforms, places, recorder, uniformOffset / 4);
    device.dispatch({ kernel: name, pipeline: pipeline.pipeline, bound, uniformOffset, grid }, trace);
    return true;
  }

  return { run };
}

function fits(made: Made, spec: Spec, names: readonly string[], tensors: Readonly<Record<string, Operand | undefined>>): boolean {
  for (let i = 0; i < names.length; i++) if (tensors[names[i] as string]?.dtype !== made.dtypes[i]) return false;
  let fields = 0;
  for (const name in spec) {
    if (spec[name] !== made.spec[name]) return false;
    fields++;
  }
  return fields === made.fields;
}
