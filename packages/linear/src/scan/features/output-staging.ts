import { fragmentLanes, Fragments, type KernelContext, range } from '@heed/core/~internal';
import { FragmentLoops } from '../fragment-loops.js';
import type { HalfLoad } from '../views.js';
import { type FeatureMap, paddedFeatures } from './map.js';
import { joinText, rowOf } from './text.js';
import { type FeatureLayout, featureLayout, type FeatureTile } from './tile.js';

/** What specialises the kernel. */
export interface OutputsSpec extends FeatureTile {
  [name: string]: string | number | boolean;
  /** Coordinates. */
  dim: number;
  valueDim: number;
  loadQ: HalfLoad;
  loadK: HalfLoad;
  loadV: HalfLoad;
  outWidth: number;
  /** A state before the segment. */
  initial: boolean;
  /** The segment's keys up to the own one; otherwise only the state. */
  causal: boolean;
  normalise: boolean;
  norm: boolean;
  lengths: boolean;
}

/** Sizes of the kernel of outputs, and what it stages in workgroup memory. */
export class OutputStaging {
  protected readonly f: Fragments;
  protected readonly loops: FragmentLoops;
  protected readonly lanes: number;
  protected readonly rows: number;
  protected readonly depth: number;
  protected readonly keyStride: number;
  protected readonly valueStride: number;
  protected readonly at: FeatureLayout;
  protected readonly sync: string;
  protected readonly across: number;

  constructor(
    protected readonly map: FeatureMap,
    protected readonly s: OutputsSpec,
    { capabilities }: KernelContext,
  ) {
    this.f = new Fragments(capabilities, {
      N: s.fragmentColumns as 8 | 16,
      packed: ['slices', ...(s.causal ? ['keys'] : []), 'values', ...(s.barriers && (s.causal || !map.weight) ? ['queries'] : [])],
    });
    this.loops = new FragmentLoops(this.f, s.width / this.f.N);
    this.lanes = s.subgroups * fragmentLanes;
    this.rows = 32 * s.subgroups;
    this.at = featureLayout(map, s);
    this.depth = this.at.depth;
    this.keyStride = this.at.keyStride;
    this.valueStride = this.at.valueStride;
    this.sync = s.barriers ? 'workgroupBarrier();' : '';
    this.across = s.width / 8;
  }

  protected items(total: number): { count: number; guard: (i: number, text: string) => string } {
    const count = Math.ceil(total / this.lanes);
    return {
      count,
      guard: (i, text) => ((i + 1) * this.lanes <= total ? `{ ${text} }` : `if (lane + ${i * this.lanes}u < ${total}u) { ${text} }`),
    };
  }

  protected declareHeld(): string {
    const values = this.items(this.s.staged * this.across);
    const keys = this.items(this.map.weight ? this.s.staged * 2 * this.depth : 0);
    return [
      ...range(values.count).map((i) => `var heldV${i} = vec4u();`),
      ...(this.s.causal ? range(keys.count).map((i) => `var heldK${i} = vec4u();`) : []),
    ].join(' ');
  }

  /** Rows of the state, from feature `staged` x `step` on, into registers. */
  protected fetchState(): string {
    const { s, across, lanes } = this;
    const values = this.items(s.staged * across);
    const size = paddedFeatures(this.map) * across;
    return range(values.count)
      .map((i) =>
        values.guard(
          i,
          `heldV${i} = before[base_before() + stateAt * ${size}u + min(step * ${s.staged * across}u + lane + ${i * lanes}u, ${size - 1}u)];`,
        ),
      )
      .join('\n');
  }

  /** Keys and values of the step, into registers; where keys become features they are loaded later. */
  protected fetchKeys(): string {
    const { s, across, lanes, depth } = this;
    const values = this.items(s.staged * across);
    const keys = this.items(this.map.weight ? s.staged * 2 * depth : 0);
    const value = (i: number): string => `
          let r = (lane + ${i * lanes}u) / ${across}u;
          let u = (lane + ${i * lanes}u) % ${across}u;
          heldV${i} = vec4u(select(0u, 0x3c00u, u == ${s.columns / 8}u), 0u, 0u, 0u);
          if (u < ${s.columns / 8}u) { heldV${i} = vec4u(); if (keyAt + r < keyEnd) { heldV${i} = eight_v(${rowOf('v', 'keyAt + r')}, columns + 8u * u); } }`;
    const key = (i: number): string => `
          let r = (lane + ${i * lanes}u) / ${2 * depth}u;
          heldK${i} = vec4u();
          if (keyAt + r < keyEnd) { heldK${i} = eight_k(${rowOf('k', 'keyAt + r')}, (lane + ${i * lanes}u) % ${2 * depth}u * 8u); }`;
    return `if (step < steps) {
        let keyAt = first + (step - featureSteps) * ${s.staged}u;
        ${range(values.count)
          .map((i) => values.guard(i, value(i)))
          .join('\n')}
        ${range(keys.count)
          .map((i) => keys.guard(i, key(i)))
          .join('\n')}
        }`;
  }

  /** What was fetched, into workgroup memory. */
  protected putValues(): string {
    const values = this.items(this.s.staged * this.across);
    return range(values.count)
      .map((i) => {
        const item = `(lane + ${i * this.lanes}u)`;
        return values.guard(i, `values[${item} / ${this.across}u * ${this.valueStride}u + ${item} % ${this.across}u] = heldV${i};`);
      })
      .join('\n');
  }

  protected putKeys(): string {
    if (!this.map.weight) return this.putKeyFeatures();
    const across = 2 * this.depth;
    const keys = this.items(this.s.staged * across);
    return range(keys.count)
      .map((i) => {
        const item = `(lane + ${i * this.lanes}u)`;
        return keys.guard(i, `keys[${item} / ${across}u * ${this.keyStride}u + ${item} % ${across}u] = heldK${i};`);
      })
      .join('\n');
  }

  /** Features of the keys of this step: a lane a key, the features spread over the subgroups. */
  private putKeyFeatures(): string {
    const { map, s, depth, keyStride } = this;
    const { keyUnit } = map;
    const load = (units: readonly number[], unit: (u: number) => string): string => `
          ${units.map((u) => `var row${u} = vec4u();`).join(' ')}
          if (key < keyEnd) { ${units.map((u) => `row${u} = eight_k(keyBase, ${unit(u)});`).join(' ')} }`;
    return `{
          let key = first + (step - featureSteps) * ${s.staged}u + subgroupLane;
          let keyBase = ${rowOf('k', 'key')};
          ${keyUnit ? '' : load(range(map.dim / 8), (u) => `${8 * u}u`)}
          ${map.keyRow()}
          for (var chunk = subgroup; chunk < ${depth}u; chunk += ${s.subgroups}u) {
            var low = vec4u();
            var high = vec4u();
            ${keyUnit ? load([0, 1], (u) => `8u * (${keyUnit('chunk')} + ${u}u)`) : ''}
            ${map.features('k', 'chunk', keyUnit && ['row0', 'row1'])}
            keys[subgroupLane * ${keyStride}u + 2u * chunk] = low;
            keys[subgroupLane * ${keyStride}u + 2u * chunk + 1u] = high;
          }
        }`;
  }

  /** `peak`: the largest magnitude among the keys that this tile sees. */
  protected keyPeak(): string {
    const units = range(Math.ceil(this.map.dim / 8));
    return `
      var own = 0.0;
      for (var t = first + lane; t < keyEnd; t += ${this.lanes}u) {
        let base = ${rowOf('k', 't')};
        ${units.map((u) => `own = max(own, peakOf(eight_k(base, ${8 * u}u)));`).join(' ')}
      }
      ${joinText(this.f.hardware, 'peaks[0]', 'own')}
      workgroupBarrier();
      let peak = bitcast<f32>(atomicLoad(&peaks[0]));`;
  }
}
