import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import { bindOperands, type Place } from './bind.js';
import type { Spec } from './bindings.js';
import type { Bindings, KernelDefinition, Operands, Uniforms, UniformValues } from './definition.js';
import { resolveGrid, type WantedGrid } from './grid.js';
import { compile, type Prepared } from './prepare.js';
import { packUniforms } from './uniforms.js';

/** Records dispatches of one kernel, each specialisation compiled on its first use. */
export interface DirectKernel<S extends Spec> {
  /**
   * Operands and values in the order of their declarations; operands must have a dtype that the kernel's bindings store as they are.
   * False where the grid is empty and nothing was recorded.
   */
  run(device: Device, spec: S, operands: Operands, values: UniformValues, wanted: WantedGrid): boolean;
}

/** A specialisation with what it was made for. */
interface Made extends Prepared {
  /** As it was given: a spec is a value, nobody changes one. */
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
export function directKernel<S extends Spec, B extends Bindings<S>, U extends Uniforms>(
  definition: KernelDefinition<S, B, U>,
): DirectKernel<S> {
  const number = kernels++;

  function prepare(device: Device, spec: S, operands: Operands): Made {
    const cache = (device.prepared[number] ??= { all: new Map(), recent: [] }) as Cache;
    const { recent } = cache;
    for (let i = 0; i < recent.length; i++) {
      const made = recent[i] as Made;
      if (!fits(made, spec, operands)) continue;
      if (i > 0) {
        recent[i] = recent[0] as Made;
        recent[0] = made;
      }
      return made;
    }
    const dtypes = operands.map((operand) => operand?.dtype);
    let key = definition.name;
    for (const name in spec) key += `|${name}=${String(spec[name])}`;
    for (const dtype of dtypes) key += `|${dtype ?? '-'}`;
    let made = cache.all.get(key);
    if (!made) {
      const prepared = compile(device, definition, spec, operands, key);
      cache.all.set(key, (made = { ...prepared, spec, fields: Object.keys(spec).length, dtypes, places: [] }));
    }
    recent.unshift(made);
    if (recent.length > mostRecent) recent.pop();
    return made;
  }

  function run(device: Device, spec: S, operands: Operands, values: UniformValues, wanted: WantedGrid): boolean {
    const { name } = definition;
    const { pipeline, layout, bindings, places } = prepare(device, spec, operands);
    bindOperands(device, name, bindings, operands, places);
    const grid = resolveGrid(device, name, wanted, places);
    if (grid === undefined) return false;
    const bound = device.bindGroups.get(pipeline.layout, places, name);
    const uniformOffset = device.recorder.uniformSlot(layout.slots);
    packUniforms(layout, values, places, device.recorder, uniformOffset / 4);
    device.dispatch(pipeline, bound, uniformOffset, grid);
    return true;
  }

  return { run };
}

function fits(made: Made, spec: Spec, operands: Operands): boolean {
  const { dtypes } = made;
  for (let i = 0; i < dtypes.length; i++) if (operands[i]?.dtype !== dtypes[i]) return false;
  if (spec === made.spec) return true;
  let fields = 0;
  for (const name in spec) {
    if (spec[name] !== made.spec[name]) return false;
    fields++;
  }
  return fields === made.fields;
}
