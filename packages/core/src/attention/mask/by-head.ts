import { HeedError } from '../../errors.js';
import { bool, capture } from '../../kernel/expr/index.js';
import { renamed } from './combine.js';
import { h, maskFrom } from './mask.js';
import type { MaskParts } from './combine.js';
import type { CaptureSource, Mask, MaskPattern, Region } from './types.js';

/**
 * Heads with masks of their own: head i uses masks[assignment[i]]. Which head uses which is a run-time value.
 * @throws HeedError INVALID_ARGUMENT when there are no masks or an assignment names none of them
 */
export function byHead(assignment: readonly number[], masks: readonly Mask[]): Mask {
  const wrong = assignment.find((which) => !Number.isInteger(which) || which < 0 || which >= masks.length);
  if (masks.length === 0 || assignment.length === 0 || wrong !== undefined) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `byHead: ${masks.length} masks and an assignment of ${wrong ?? 'no heads'}; assign each head one of the masks`,
    );
  }
  const uniforms: Record<string, number> = {};
  const captures: Record<string, CaptureSource> = { maskOfHead: Int32Array.from(assignment) };
  const parts: MaskParts[] = [];
  for (const mask of masks) {
    const part = renamed(mask, { uniforms, captures });
    Object.assign(uniforms, part.uniforms);
    Object.assign(captures, part.captures);
    parts.push(part);
  }
  const which = capture('maskOfHead', 'i32').at(h);
  const predicate = parts.reduce((all, part, i) => all.or(which.eq(i).and(part.predicate)), bool(false));
  const patternOf = (region: Region): MaskPattern => parts[assignment[Math.min(region.head, assignment.length - 1)]!]!.pattern;
  return maskFrom({
    predicate,
    uniforms,
    captures,
    perHead: true,
    perBatch: parts.some((part) => part.perBatch),
    pattern: { keys: (region) => patternOf(region).keys(region), queries: (region) => patternOf(region).queries(region) },
  });
}
