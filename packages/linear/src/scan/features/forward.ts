import type { Tensor } from '@heed/core';
import { defineKernel, empty, type KernelContext, read, write } from '@heed/core/~internal';
import { halfLoad, rowWidth } from '../views.js';
import { type FeatureMap, paddedFeatures } from './map.js';
import type { OutputsSpec } from './output-staging.js';
import { outputsText } from './outputs.js';
import { type SegmentsSpec, segmentsText } from './segments.js';
import { type StatesSpec, statesText } from './states.js';
import { featureStrides, featureUniforms, halfRaw } from './text.js';
import { type FeatureTile, featureTile, segmentTokensOf } from './tile.js';

/** A problem for the kernels on fragments; all operands f16. */
export interface FeatureProblem {
  /** [batch, tokens, heads, dim]; views are fine. */
  q: Tensor;
  k: Tensor;
  /** [batch, tokens, heads, valueDim]. */
  v: Tensor;
  causal: boolean;
  normalise: boolean;
  eps: number;
  lengths?: Tensor | undefined;
  /** Tokens a segment; absent: a choice of the plan. */
  chunk?: number | undefined;
  /** Run-time values of the map. */
  values: Record<string, number>;
}

/** Sums, contiguous f32: kv [batch, heads, features, valueDim], z [batch, heads, features]. */
export interface FeatureState {
  kv: Tensor;
  z: Tensor;
}

/** What a pass makes beside the outputs. */
export interface FeatureOutputs {
  out: Tensor;
  /** Denominators, f32 [batch, tokens, heads]. */
  norm?: Tensor | undefined;
  initial?: FeatureState | undefined;
  final?: FeatureState | undefined;
}

/** The kernels of a map. */
export interface FeatureKernels {
  /** Tiles of a problem, or undefined where it does not run on fragments. */
  tile(k: Tensor, v: Tensor): FeatureTile | undefined;
  run(problem: FeatureProblem, outputs: FeatureOutputs, tile: FeatureTile): void;
}

/**
 * Makes the kernels of a map.
 * @param settings names of the run-time values that the map's text uses, f32
 */
export function featureKernels(
  name: string,
  settings: readonly string[],
  mapOf: (dim: number, unrolled: boolean) => FeatureMap,
): FeatureKernels {
  const mapFor = (s: { dim: number }, { capabilities }: KernelContext): FeatureMap => mapOf(s.dim, capabilities.matrix === 'hardware');
  const uniforms = { ...featureStrides.uniforms, ...featureUniforms, ...Object.fromEntries(settings.map((u) => [u, 'f32' as const])) };
  // What each segment adds to the state, and its peaks (states.ts).
  // tile    all features x `columns` values and the ones a workgroup
  // bytes   reads k twice and v once a column tile, writes f32 features x width a segment
  const states = defineKernel({
    name: `${name}-states`,
    tier: 'matrix',
    bindings: {
      k: read<StatesSpec>('f16', { raw: (s) => halfRaw[s.loadK] }),
      v: read<StatesSpec>('f16', { raw: (s) => halfRaw[s.loadV] }),
      lengths: read<StatesSpec>('i32', { when: (s) => s.lengths }),
      added: write<StatesSpec>('f32', { raw: 'f32' }),
      peaksOf: write<StatesSpec>('f32'),
    },
    uniforms,
    wgsl: (s: StatesSpec, context: KernelContext) => statesText(mapFor(s, context), s, context),
  });
  // The state before each segment (segments.ts).
  // tile    two columns of one feature a lane, all segments in turn
  // bytes   reads f32, writes f16 features x width a segment
  const segments = defineKernel({
    name: `${name}-segments`,
    tier: 'matrix',
    bindings: {
      added: read<SegmentsSpec>('f32', { raw: 'vec2f' }),
      peaksOf: read<SegmentsSpec>('f32'),
      lengths: read<SegmentsSpec>('i32', { when: (s) => s.lengths }),
      initialKv: read<SegmentsSpec>('f32', { when: (s) => s.initial }),
      initialZ: read<SegmentsSpec>('f32', { when: (s) => s.initial }),
      before: write<SegmentsSpec>('f16', { raw: 'u32' }),
      downs: write<SegmentsSpec>('f32'),
      finalKv: write<SegmentsSpec>('f32', { when: (s) => s.final }),
      finalZ: write<SegmentsSpec>('f32', { when: (s) => s.final }),
    },
    uniforms,
    wgsl: (s: SegmentsSpec, context: KernelContext) => segmentsText(mapFor(s, context), s),
  });
  // Outputs from the state before a segment and its own keys (outputs.ts).
  // tile    32 rows a subgroup, `columns` values and the ones a workgroup
  // bytes   reads q, writes out once; a state, and half a segment's k and v on average, once a tile of queries
  const outputs = defineKernel({
    name: `${name}-outputs`,
    tier: 'matrix',
    bindings: {
      q: read<OutputsSpec>('f16', { raw: (s) => halfRaw[s.loadQ] }),
      k: read<OutputsSpec>('f16', { raw: (s) => halfRaw[s.loadK], when: (s) => s.causal }),
      v: read<OutputsSpec>('f16', { raw: (s) => halfRaw[s.loadV], when: (s) => s.causal }),
      before: read<OutputsSpec>('f16', { raw: 'vec4u', when: (s) => s.initial }),
      downs: read<OutputsSpec>('f32', { when: (s) => s.initial }),
      lengths: read<OutputsSpec>('i32', { when: (s) => s.lengths }),
      out: write<OutputsSpec>('float', { width: (s) => s.outWidth }),
      norm: write<OutputsSpec>('f32', { when: (s) => s.norm }),
    },
    uniforms,
    wgsl: (s: OutputsSpec, context: KernelContext) => outputsText(mapFor(s, context), s, context),
  });

  return {
    tile(k, v) {
      if ([k, v].some((x) => x.dtype !== 'f16')) return undefined;
      return featureTile(mapOf(k.dim(3), true), v.dim(3), k.device.capabilities);
    },
    run(problem, { out, norm, initial, final }, tile) {
      const { q, k, v, causal, normalise, eps, lengths, chunk, values } = problem;
      const [batch, tokens, heads, dim] = q.shape as [number, number, number, number];
      const valueDim = v.dim(3);
      const map = mapOf(dim, true);
      const padded = paddedFeatures(map);
      const columnTiles = Math.ceil(valueDim / tile.columns);
      const segmentTokens = segmentTokensOf(map, {
        batch,
        tokens,
        heads,
        columnTiles,
        causal,
        chunk,
        stateBytes: 4 * padded * tile.width,
        bindingBytes: k.device.limits.maxStorageBufferBindingSize,
      });
      const segmentCount = Math.ceil(tokens / segmentTokens);
      const rowTiles = Math.ceil(segmentTokens / (32 * tile.subgroups));
      const shared = {
        tokens,
        heads,
        segments: segmentCount,
        segmentTokens,
        stateSegments: causal ? segmentCount : 1,
        columnTiles,
        rowTiles,
        epsilon: eps,
        ...values,
        ...featureStrides.values({ q, k, v, out }),
      };
      const sizes = { ...tile, dim, valueDim, lengths: lengths !== undefined };
      const needsStates = segmentCount > 1 || !causal || initial !== undefined || final !== undefined;
      let before: Tensor | undefined;
      let downs: Tensor | undefined;
      if (needsStates) {
        const places = batch * heads * segmentCount * columnTiles;
        const added = empty(k.device, [places, padded, tile.width]);
        const peaksOf = empty(k.device, [places, 2]);
        states.run(k.device, {
          spec: { ...sizes, loadK: halfLoad(k), loadV: halfLoad(v) },
          tensors: { k, v, lengths, added, peaksOf },
          uniforms: { workgroups: places, ...shared },
          grid: [places],
        });
        before = empty(k.device, [causal ? places : places / segmentCount, padded, tile.width], 'f16');
        // the factor of each state, and the largest coordinate among the keys of its segment
        downs = empty(k.device, [before.dim(0), 2]);
        const lanes = batch * heads * columnTiles * Math.ceil((padded * tile.width) / 512);
        segments.run(k.device, {
          spec: {
            columns: tile.columns,
            width: tile.width,
            dim,
            valueDim,
            initial: initial !== undefined,
            final: final !== undefined,
            whole: !causal,
            lengths: lengths !== undefined,
          },
          tensors: {
            added,
            peaksOf,
            lengths,
            initialKv: initial?.kv,
            initialZ: initial?.z,
            before,
            downs,
            finalKv: final?.kv,
            finalZ: final?.z,
          },
          uniforms: { workgroups: lanes, ...shared },
          grid: [lanes],
        });
      }
      const workgroups = columnTiles * heads * rowTiles * segmentCount * batch;
      outputs.run(k.device, {
        spec: {
          ...sizes,
          loadQ: halfLoad(q),
          loadK: halfLoad(k),
          loadV: halfLoad(v),
          outWidth: rowWidth(out),
          initial: needsStates && (segmentCount > 1 || !causal || initial !== undefined),
          causal,
          normalise,
          norm: norm !== undefined,
        },
        tensors: { q, k, v, before, downs, lengths, out, norm },
        uniforms: { workgroups, ...shared },
        grid: [workgroups],
      });
    },
  };
}
