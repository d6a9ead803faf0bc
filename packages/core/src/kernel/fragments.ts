// Tiles of a matrix product spread over 32 lanes, as text. Two back ends:
//   hardware   Dawn's subgroup matrices (tensor cores)
//   emulated   32 virtual lanes: a result fragment is an array of M * N / 32 f32 a lane; left and right fragments are not
//              loaded at all, the product reads its operands where they lie. So tiling, masks and tails of a matrix kernel
//              run on any device; only the fragment itself waits for the real GPU. Loops have bounds that a compiler
//              cannot see (`fragmentElements`): unrolled, a kernel of many fragments takes a software driver minutes.
// Contract (what makes both agree): between loading a left or right fragment and its last use in `multiplyAdd` the memory
// that it was loaded from must not change, and every lane of a subgroup runs the same fragment calls in uniform control flow.
// Operands are f16, results f32. A result is stored as f32; convert on the way out of workgroup memory. On hardware an
// array may have wider elements (vec4u, vec2u, vec4f), in workgroup memory and in bindings: offset and stride then count those.
import type { Capabilities } from '../device/capabilities.js';
import { HeedError } from '../errors.js';
import { range } from './modules.js';

export type FragmentLayout = 'row' | 'column';

interface Loaded {
  array: string;
  layout: FragmentLayout;
}

/** Lanes of a (real or virtual) subgroup in matrix kernels. */
export const fragmentLanes = 32;

/** The fragment shape (M rows, N columns, K deep) that matrix kernels use on a device; 16 x 8 x 16 where there is a choice. */
export function fragmentShape(capabilities: Capabilities, preferred: { N?: 8 | 16 } = {}): { M: number; N: number; K: number } {
  const wanted = preferred.N ?? 8;
  const fits = capabilities.matrixConfigs.filter((c) => c.component === 'f16' && c.result === 'f32' && c.M === 16 && c.K === 16);
  const found = fits.find((c) => c.N === wanted) ?? fits[0];
  if (!found) {
    const listed = capabilities.matrixConfigs.map((c) => `${c.component}->${c.result} ${c.M}x${c.N}x${c.K}`).join(', ') || 'none';
    throw new HeedError(
      'UNSUPPORTED',
      `core: no subgroup-matrix shape with 16 rows and 16 deep, f16 -> f32, on this device (it has: ${listed}); open it with tier "subgroups"`,
    );
  }
  return { M: found.M, N: found.N, K: found.K };
}

/**
 * True where matrix kernels can be generated for the device: real subgroup matrices of a known shape, or emulation.
 * @param result dtype of sums; those of `zeroHalf` are f16
 */
export function hasFragments(capabilities: Capabilities, result: 'f32' | 'f16' = 'f32'): boolean {
  return (
    capabilities.matrix !== 'none' &&
    capabilities.f16 &&
    capabilities.matrixConfigs.some((c) => c.component === 'f16' && c.result === result && c.M === 16 && c.K === 16)
  );
}

/** Generates the fragment code of one kernel. Make one a kernel text: it remembers where each operand was loaded from. */
export class Fragments {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly hardware: boolean;
  private readonly sizeControl: boolean;
  private readonly loaded: Map<string, Loaded> = new Map();
  private readonly packed: readonly string[];
  private exchanges = false;
  private readonly halves: Set<string> = new Set();

  /**
   * @param preferred.packed names of workgroup arrays of vec4u, which hold operands and results in turn: 8 halves or 4 floats an
   *   element, in which offsets and strides are counted. They are filled by 16-byte stores; scalar f16 stores cost more than products
   */
  constructor(capabilities: Capabilities, preferred: { N?: 8 | 16; packed?: readonly string[] } = {}) {
    this.packed = preferred.packed ?? [];
    const shape = fragmentShape(capabilities, preferred);
    this.M = shape.M;
    this.N = shape.N;
    this.K = shape.K;
    this.hardware = capabilities.matrix === 'hardware';
    this.sizeControl = capabilities.subgroupSizeControl;
  }

  /**
   * The entry point. In `body`: `group`, `groups`, `lane` (in the workgroup), `subgroup` (its number), `subgroupLane`.
   * @param options.lanesInOrder `subgroup` and `subgroupLane` are computed from `lane`, whose range the compiler knows, so that it
   *   leaves out bounds checks; subgroups may then also run different fragment calls
   */
  entry(subgroups: number, body: string, options: { lanesInOrder?: boolean } = {}): string {
    const size = subgroups * fragmentLanes;
    const common =
      '@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32';
    if (this.hardware) {
      const attribute = this.sizeControl ? ` @subgroup_size(${fragmentLanes})` : '';
      if (options.lanesInOrder)
        return `
        @diagnostic(off, subgroup_uniformity) @diagnostic(off, chromium.subgroup_matrix_uniformity)
        @compute @workgroup_size(${size})${attribute}
        fn main(${common}) {
          let subgroup = lane / ${fragmentLanes}u;
          let subgroupLane = lane % ${fragmentLanes}u;
          ${body}
        }`;
      return `
        @compute @workgroup_size(${size})${attribute}
        fn main(${common}, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) subgroupLane: u32) {
          ${body}
        }`;
    }
    const scratch = this.exchanges ? `var<workgroup> fragmentExchange: array<f32, ${size}>;` : '';
    return `
      ${scratch}
      ${this.packed.map(packedAccess).join('\n')}
      @compute @workgroup_size(${size})
      fn main(${common}) {
        let subgroup = lane / ${fragmentLanes}u;
        let subgroupLane = lane % ${fragmentLanes}u;
        let fragmentElements = ${this.perLane - 1}u + min(groups.x, 1u);
        ${body}
      }`;
  }

  /** Declares an accumulator of zeros. The explicit zero matters: a driver keeps the old values of a loop's last pass otherwise. */
  zero(name: string): string {
    return `var ${name} = ${this.resultType}();`;
  }

  /** Sets an accumulator to zeros again. */
  clear(name: string): string {
    return `${name} = ${this.resultType}();`;
  }

  /** Declares an f16 accumulator of zeros, in the emulation an array of `count`: sums are rounded to f16, `storeHalf` writes them as operands. */
  zeroHalf(name: string, count = 1): string {
    this.halves.add(name);
    return this.hardware ? `var ${name} = ${this.halfType}();` : `var ${name} = array<${this.halfType}, ${count}>();`;
  }

  /** Sets an f16 accumulator to zeros again. */
  clearHalf(name: string): string {
    return `${name} = ${this.halfType}();`;
  }

  /** Writes an f16 accumulator to an array of halves; offset and stride count as for operands. */
  storeHalf(accumulator: string, array: string, offset: string, stride: string): string {
    if (this.hardware) return `subgroupMatrixStore<row_major>(&${array}, ${offset}, ${accumulator}, ${stride});`;
    return `{ let storeAt = ${this.counted(array, offset, 8)}; let storeStride = ${this.counted(array, stride, 8)};
      for (var e = 0u; e < fragmentElements; e += 2u) {
        ${this.pairPlace}
        let i = storeAt + row * storeStride + column;
        ${array}[i / 8u][i / 2u % 4u] = pack2x16float(vec2f(${accumulator}[e], ${accumulator}[e + 1u]));
      } }`;
  }

  /** Left operand, M rows x K: element (r, k) at `array[offset + r * stride + k]`, or `[offset + k * stride + r]` for `column`. */
  loadLeft(name: string, array: string, offset: string, stride: string, layout: FragmentLayout = 'row'): string {
    return this.load(name, array, offset, stride, layout, this.leftType);
  }

  /** Declares a left operand of zeros, which `setLeft` loads; hardware only. */
  emptyLeft(name: string): string {
    return `var ${name} = ${this.leftType}();`;
  }

  /** Loads a left operand that `emptyLeft` declared; hardware only. */
  setLeft(name: string, array: string, offset: string, stride: string): string {
    return `${name} = subgroupMatrixLoad<${this.leftType}, row_major>(&${array}, ${offset}, ${stride});`;
  }

  /** Right operand, K x N columns: element (k, c) at `array[offset + k * stride + c]`, or `[offset + c * stride + k]` for `column`. */
  loadRight(name: string, array: string, offset: string, stride: string, layout: FragmentLayout = 'row'): string {
    return this.load(name, array, offset, stride, layout, `subgroup_matrix_right<f16, ${this.N}, ${this.K}>`);
  }

  /** accumulator += left * right */
  multiplyAdd(accumulator: string, left: string, right: string): string {
    if (this.hardware) return `${accumulator} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${accumulator});`;
    const a = this.operand(left);
    const b = this.operand(right);
    const at = a.layout === 'row' ? `${left}_at + row * ${left}_stride + k` : `${left}_at + k * ${left}_stride + row`;
    const bt = b.layout === 'row' ? `${right}_at + k * ${right}_stride + column` : `${right}_at + column * ${right}_stride + k`;
    return this.eachElement(
      `
      var sum = 0.0;
      for (var k = 0u; k < fragmentElements * ${this.K / this.perLane}u; k++) { sum += ${this.half(a.array, at)} * ${this.half(b.array, bt)}; }
      ${accumulator}[e] += sum;`,
      this.halves.has(accumulator.split('[')[0] as string),
    );
  }

  /** accumulator *= scalar, one scalar for the whole fragment. */
  scale(accumulator: string, scalar: string): string {
    if (this.hardware) return `${accumulator} = subgroupMatrixScalarMultiply(${accumulator}, ${scalar});`;
    return `{ let scaleBy = ${scalar}; ${this.eachElement(`${accumulator}[e] *= scaleBy;`)} }`;
  }

  /** Writes an accumulator to an f32 array: element (r, c) to `array[offset + r * stride + c]`. */
  store(accumulator: string, array: string, offset: string, stride: string): string {
    if (this.hardware) return `subgroupMatrixStore<row_major>(&${array}, ${offset}, ${accumulator}, ${stride});`;
    const at = 'storeAt + row * storeStride + column';
    const store = this.packed.includes(array) ? `set_${array}(${at}, ${accumulator}[e]);` : `${array}[${at}] = ${accumulator}[e];`;
    return `{ let storeAt = ${this.counted(array, offset, 4)}; let storeStride = ${this.counted(array, stride, 4)}; ${this.eachElement(store)} }`;
  }

  /** Reads an accumulator (declared before by `zero`) back from an f32 array. */
  loadResult(accumulator: string, array: string, offset: string, stride: string): string {
    if (this.hardware) return `${accumulator} = subgroupMatrixLoad<${this.resultType}, row_major>(&${array}, ${offset}, ${stride});`;
    const at = 'loadAt + row * loadStride + column';
    const value = this.packed.includes(array) ? `float_${array}(${at})` : `${array}[${at}]`;
    return `{ let loadAt = ${this.counted(array, offset, 4)}; let loadStride = ${this.counted(array, stride, 4)}; ${this.eachElement(`${accumulator}[e] = ${value};`)} }`;
  }

  /**
   * `let name` = the value of the lane whose number differs by `mask` (below 32). Uniform control flow of the whole
   * workgroup: the emulation goes through workgroup memory with barriers.
   */
  exchange(name: string, value: string, mask: number): string {
    if (this.hardware) return `let ${name} = subgroupShuffleXor(${value}, ${mask}u);`;
    this.exchanges = true;
    return `workgroupBarrier(); fragmentExchange[lane] = ${value}; workgroupBarrier(); let ${name} = fragmentExchange[lane ^ ${mask}u];`;
  }

  private get leftType(): string {
    return `subgroup_matrix_left<f16, ${this.K}, ${this.M}>`;
  }

  private get perLane(): number {
    return (this.M * this.N) / fragmentLanes;
  }

  private get resultType(): string {
    return this.hardware ? `subgroup_matrix_result<f32, ${this.N}, ${this.M}>` : `array<f32, ${this.perLane}>`;
  }

  private get halfType(): string {
    return this.hardware ? `subgroup_matrix_result<f16, ${this.N}, ${this.M}>` : `array<f32, ${this.perLane}>`;
  }

  /** Emulation of f16 accumulators: a lane owns neighbours in a row, so that it writes whole words. */
  private get pairPlace(): string {
    const across = this.N / 2;
    return `let pair = e / 2u * ${fragmentLanes}u + subgroupLane; let row = pair / ${across}u; let column = pair % ${across}u * 2u + e % 2u;`;
  }

  /** Emulation: `body` for each element `e` of this lane, at `row` and `column` of the fragment. */
  private eachElement(body: string, paired = false): string {
    if (paired) return `for (var e = 0u; e < fragmentElements; e++) { ${this.pairPlace} ${body} }`;
    const rowsApart = fragmentLanes / this.N;
    return `for (var e = 0u; e < fragmentElements; e++) { let row = e * ${rowsApart}u + subgroupLane / ${this.N}u; let column = subgroupLane % ${this.N}u; ${body} }`;
  }

  private load(name: string, array: string, offset: string, stride: string, layout: FragmentLayout, type: string): string {
    if (this.hardware)
      return `let ${name} = subgroupMatrixLoad<${type}, ${layout}_major>(&${array}, ${offset}, ${stride});`.replace(
        'column_major',
        'col_major',
      );
    this.loaded.set(name, { array, layout });
    return `let ${name}_at = ${this.counted(array, offset, 8)}; let ${name}_stride = ${this.counted(array, stride, 8)};`;
  }

  /** Emulation: an offset in scalars, of which `per` make an element of a packed array. */
  private counted(array: string, offset: string, per: number): string {
    return this.packed.includes(array) ? `(${offset}) * ${per}u` : offset;
  }

  private half(array: string, at: string): string {
    return this.packed.includes(array) ? `half_${array}(${at})` : `f32(${array}[${at}])`;
  }

  private operand(name: string): Loaded {
    const found = this.loaded.get(name);
    if (!found) throw new Error(`kernel: fragment ${name} is used before it is loaded`);
    return found;
  }
}

/** Emulation: scalars of a packed array. */
function packedAccess(array: string): string {
  return `
      fn half_${array}(i: u32) -> f32 { let pair = bitcast<vec2<f16>>(${array}[i / 8u][i / 2u % 4u]); return f32(pair[i % 2u]); }
      fn float_${array}(i: u32) -> f32 { return bitcast<f32>(${array}[i / 4u][i % 4u]); }
      fn set_${array}(i: u32, value: f32) { ${array}[i / 4u][i % 4u] = bitcast<u32>(value); }`;
}

/** Names `prefix0_0 .. ` of a rows x columns grid of fragments, row by row. */
export function fragmentGrid(prefix: string, rows: number, columns: number): { name: string; row: number; column: number }[] {
  return range(rows).flatMap((row) => range(columns).map((column) => ({ name: `${prefix}${row}_${column}`, row, column })));
}
