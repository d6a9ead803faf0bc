import type { DType } from '../dtype.js';
import { type LaneScalar, type LaneState, softmaxState } from '../kernel/wgsl/lanes.js';

/** What a reduction computes. */
export type Reduction = 'sum' | 'sumSquares' | 'max' | 'min' | 'logsumexp' | 'argmax' | 'argmin';
export type Finish = 'none' | 'sqrt';

const lowest: Record<LaneScalar, string> = { f32: '-3.4028234e38', i32: 'i32(-2147483648)', u32: '0u' };
const highest: Record<LaneScalar, string> = { f32: '3.4028234e38', i32: '2147483647i', u32: '4294967295u' };

/** The WGSL type that a dtype is reduced in. */
export function scalarOf(dtype: DType): LaneScalar {
  return dtype === 'i32' ? 'i32' : dtype === 'u32' || dtype === 'u8' ? 'u32' : 'f32';
}

export interface ReductionText extends LaneState {
  identity: readonly string[];
  /** Fields of the state of an element `v` at index `at`. */
  map: string;
}

/** States and how they join, for one reduction of one type. */
export function reductionText(kind: Reduction, type: LaneScalar): ReductionText {
  const single = (combine: string, subgroup: string, identity: string, map = 'v'): ReductionText => ({
    parts: [type],
    combine: (S) => `return ${S}(${combine});`,
    subgroup: `return State(${subgroup}(x.a));`,
    identity: [identity],
    map,
  });
  const zero = type === 'f32' ? '0.0' : type === 'i32' ? '0i' : '0u';
  switch (kind) {
    case 'sum':
      return single('x.a + y.a', 'subgroupAdd', zero);
    case 'sumSquares':
      return single('x.a + y.a', 'subgroupAdd', zero, 'v * v');
    case 'max':
      return single('max(x.a, y.a)', 'subgroupMax', lowest[type]);
    case 'min':
      return single('min(x.a, y.a)', 'subgroupMin', highest[type]);
    case 'logsumexp':
      return { ...softmaxState, identity: ['NEG', '0.0'], map: 'v, one' };
    default: {
      const wins = kind === 'argmax' ? '>' : '<';
      return {
        parts: [type, 'u32'],
        // ties go to the lower index
        combine: (S) =>
          `let better = (y.a ${wins} x.a) | ((y.a == x.a) & (y.b < x.b)); return ${S}(select(x.a, y.a, better), select(x.b, y.b, better));`,
        subgroup: `let m = ${kind === 'argmax' ? 'subgroupMax' : 'subgroupMin'}(x.a); return State(m, subgroupMin(select(4294967295u, x.b, x.a == m)));`,
        identity: [kind === 'argmax' ? lowest[type] : highest[type], '4294967295u'],
        map: 'v, at',
      };
    }
  }
}
