import { substitute } from '../../kernel/expr/index.js';
import type { Expr } from '../../kernel/expr/index.js';
import { complementSpans, intersectSpans, NOTHING, uniteSpans } from './spans.js';
import type { MaskDefinition } from './mask.js';
import type { CaptureSource, Coverage, Mask, MaskPattern, Region } from './types.js';

// Masks combine by interval algebra in three-valued logic: what all see is the lower bound, what some see the upper bound of the
// truth, so `not` swaps them and takes complements.

type Build = (definition: MaskDefinition) => Mask;
type Axis = (pattern: MaskPattern, region: Region) => Coverage;

const keys: Axis = (pattern, region) => pattern.keys(region);
const queries: Axis = (pattern, region) => pattern.queries(region);
const bothWays = (answer: (axis: Axis) => (region: Region) => Coverage): MaskPattern => ({ keys: answer(keys), queries: answer(queries) });

/** What both patterns allow. */
export function intersectPatterns(first: MaskPattern, second: MaskPattern): MaskPattern {
  return bothWays((axis) => (region) => {
    const a = axis(first, region);
    if (a.some.length === 0) return NOTHING;
    // Outside the hull of the first the second need not be asked.
    const { batch, head, low, high, grain } = region;
    const c = axis(second, { batch, head, low, high, from: a.some[0]!, to: a.some[a.some.length - 1]!, grain });
    return { all: intersectSpans(a.all, c.all), some: intersectSpans(a.some, c.some) };
  });
}

export function conjunction(first: Mask, second: Mask, build: Build): Mask {
  const other = renamed(second, first);
  return build({
    ...together(first, other),
    predicate: first.predicate.and(other.predicate),
    pattern: intersectPatterns(first.pattern, other.pattern),
  });
}

export function disjunction(first: Mask, second: Mask, build: Build): Mask {
  const other = renamed(second, first);
  return build({
    ...together(first, other),
    predicate: first.predicate.or(other.predicate),
    pattern: bothWays((axis) => (region) => {
      const a = axis(first.pattern, region);
      const c = axis(other.pattern, region);
      return { all: uniteSpans(a.all, c.all), some: uniteSpans(a.some, c.some) };
    }),
  });
}

export function negation(mask: Mask, build: Build): Mask {
  return build({
    uniforms: mask.uniforms,
    captures: mask.captures,
    perHead: mask.perHead,
    perBatch: mask.perBatch,
    predicate: mask.predicate.not(),
    pattern: bothWays((axis) => (region) => {
      const { all, some } = axis(mask.pattern, region);
      return { all: complementSpans(some, region.from, region.to), some: complementSpans(all, region.from, region.to) };
    }),
  });
}

/** The fields of two masks whose names no longer clash. */
function together(first: Mask, other: Pick<Mask, 'uniforms' | 'captures' | 'perHead' | 'perBatch'>): Omit<MaskDefinition, 'predicate'> {
  return {
    uniforms: { ...first.uniforms, ...other.uniforms },
    captures: { ...first.captures, ...other.captures },
    perHead: first.perHead || other.perHead,
    perBatch: first.perBatch || other.perBatch,
  };
}

/** The parts of a mask that a combination needs. */
export type MaskParts = Pick<Mask, 'predicate' | 'uniforms' | 'captures' | 'perHead' | 'perBatch' | 'pattern'>;

/**
 * A mask whose uniforms and captures do not clash with another's. A uniform gets a new name whenever the name is taken, whatever its
 * value, so that values never change the structure; a capture of the very same array keeps its name, so that it is bound once.
 */
export function renamed(mask: Mask, taken: Pick<Mask, 'uniforms' | 'captures'>): MaskParts {
  const uniformNames: Record<string, string> = {};
  const captureNames: Record<string, string> = {};
  const uniforms: Record<string, number> = {};
  const captures: Record<string, CaptureSource> = {};
  for (const [name, value] of Object.entries(mask.uniforms)) {
    const fresh = unused(
      name,
      (candidate) => candidate in taken.uniforms || candidate in uniforms || (candidate !== name && candidate in mask.uniforms),
    );
    if (fresh !== name) uniformNames[name] = fresh;
    uniforms[fresh] = value;
  }
  for (const [name, source] of Object.entries(mask.captures)) {
    const twin = Object.keys(taken.captures).find((candidate) => taken.captures[candidate] === source);
    const fresh =
      twin ??
      unused(
        name,
        (candidate) => candidate in taken.captures || candidate in captures || (candidate !== name && candidate in mask.captures),
      );
    if (fresh !== name) captureNames[name] = fresh;
    captures[fresh] = source;
  }
  const predicate: Expr<'bool'> = substitute(mask.predicate, { uniforms: uniformNames, captures: captureNames });
  return { predicate, uniforms, captures, perHead: mask.perHead, perBatch: mask.perBatch, pattern: mask.pattern };
}

function unused(name: string, taken: (candidate: string) => boolean): string {
  if (!taken(name)) return name;
  const stem = name.replace(/_\d+$/, '');
  for (let n = 2; ; n++) if (!taken(`${stem}_${n}`)) return `${stem}_${n}`;
}
