import { fragmentLanes, Fragments, type KernelContext, range } from '@heed/core/~internal';
import { FragmentLoops } from '../scan/fragment-loops.js';
import type { HalfLoad } from '../scan/views.js';
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

  /** Step number `step` into registers: features of the state, or keys and values. */
  protected fetch(): string {
    const { s, across, lanes, depth } = this;
    const values = this.items(s.staged * across);
    const keys = this.items(this.map.weight ? s.staged * 2 * depth : 0);
    const size = paddedFeatures(this.map) * across;
    const fromState = range(values.count)
      .map((i) =>
        values.guard(
          i,
          `heldV${i} = before[base_before() + stateAt * ${size}u + min(step * ${s.staged * across}u + lane + ${i * lanes}u, ${size - 1}u)];`,
        ),
      )
      .join('\n');
    const fromKeys = `
        let keyAt = first + (step - featureSteps) * ${s.staged}u;
        ${range(values.count)
          .map((i) =>
            values.guard(
              i,
              `
          let r = (lane + ${i * lanes}u) / ${across}u;
          let u = (lane + ${i * lanes}u) % ${across}u;
          heldV${i} = vec4u(select(0u, 0x3c00u, u == ${s.columns / 8}u), 0u, 0u, 0u);
          if (u < ${s.columns / 8}u) { heldV${i} = vec4u(); if (keyAt + r < keyEnd) { heldV${i} = eight_v(${rowOf('v', 'keyAt + r')}, columns + 8u * u); } }`,
            ),
          )
          .join('\n')}
        ${range(keys.count)
          .map((i) =>
            keys.guard(
              i,
              `
          let r = (lane + ${i * lanes}u) / ${2 * depth}u;
          heldK${i} = vec4u();
          if (keyAt + r < keyEnd) { heldK${i} = eight_k(${rowOf('k', 'keyAt + r')}, (lane + ${i * lanes}u) % ${2 * depth}u * 8u); }`,
            ),
          )
          .join('\n')}`;
    if (!s.causal) return `if (step < steps) { ${fromState} }`;
    if (!s.initial) return `if (step < steps) { ${fromKeys} }`;
    return `if (step < featureSteps) { ${fromState} } else if (step < steps) { ${fromKeys} }`;
  }

  protected put(): string {
    const { s, across, lanes, depth } = this;
    const values = this.items(s.staged * across);
    const keys = this.items(this.map.weight ? s.staged * 2 * depth : 0);
    return `
        ${s.causal && !this.map.weight ? this.putKeyFeatures() : ''}
        ${range(values.count)
          .map((i) =>
            values.guard(
              i,
              `values[(lane + ${i * lanes}u) / ${across}u * ${this.valueStride}u + (lane + ${i * lanes}u) % ${across}u] = heldV${i};`,
            ),
          )
          .join('\n')}
        ${
          s.causal
            ? range(keys.count)
                .map((i) =>
                  keys.guard(
                    i,
                    `keys[(lane + ${i * lanes}u) / ${2 * depth}u * ${this.keyStride}u + (lane + ${i * lanes}u) % ${2 * depth}u] = heldK${i};`,
                  ),
                )
                .join('\n')
            : ''
        }`;
  }

  /** Features of the keys of this step: a lane a key, the features spread over the subgroups. */
  private putKeyFeatures(): string {
    const { map, s, depth, keyStride } = this;
    const units = range(map.dim / 8);
    return `
        if (step >= featureSteps) {
          let key = first + (step - featureSteps) * ${s.staged}u + subgroupLane;
          ${units.map((u) => `var row${u} = vec4u();`).join(' ')}
          if (key < keyEnd) { let base = ${rowOf('k', 'key')}; ${units.map((u) => `row${u} = eight_k(base, ${8 * u}u);`).join(' ')} }
          ${map.keyRow()}
          for (var chunk = subgroup; chunk < ${depth}u; chunk += ${s.subgroups}u) {
            var low = vec4u();
            var high = vec4u();
            ${map.features('k', 'chunk')}
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
