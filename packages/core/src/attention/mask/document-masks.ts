import { HeedError } from '../../errors.js';
import { capture, uniform } from '../../kernel/expr/index.js';
import { axisPattern, blockCausal, causal, expectCount, unknownCoverage } from './basic.js';
import { documentsOf, sameDocument } from './documents.js';
import { kv, maskFrom, onHost, q } from './mask.js';
import { intersectPatterns } from './combine.js';
import { appendSpan } from './spans.js';
import type { DocumentIds, Documents, DocumentTable } from './documents.js';
import type { Mask, MaskPattern, Spans } from './types.js';

// The document masks of LongCA-bench (arXiv 2510.17896), numbered as there. `ids` as in `document`.

/** Same document and kv <= q. Mask 6. */
export function causalDocument(ids: Int32Array | DocumentIds): Mask {
  return sameDocument(documentsOf('causalDocument', ids)).and(causal());
}

/**
 * Answers to one question in one sequence: tokens see their own document causally, and every other document sees the whole question.
 * Mask 7.
 * @param options.question id of the question's document; default 0
 */
export function sharedQuestion(ids: Int32Array | DocumentIds, options: { question?: number } = {}): Mask {
  const { question = 0 } = options;
  const documents = documentsOf('sharedQuestion', ids);
  const { idOf, inside } = documents;
  const wanted = uniform('question', 'i32');
  const keysOfQuestion = tokensWhere(documents, 'key', (table) => table.spans.get(question) ?? []);
  const queriesOfOthers = tokensWhere(documents, 'query', (table) => spansWhere(table, (id) => id >= 0 && id !== question));
  const answers = maskFrom({
    predicate: inside.and(idOf(q).ge(0)).and(idOf(q).ne(wanted)).and(idOf(kv).eq(wanted)),
    uniforms: { ...documents.uniforms, question },
    captures: documents.captures,
    pattern: intersectPatterns(keysOfQuestion, queriesOfOthers),
  });
  return sameDocument(documents).and(causal()).or(answers);
}

/**
 * Demonstrations see themselves causally, the last document sees everything before it. Mask 9.
 * @param options.last id of the document that sees all; default: the greatest id (needs ids on the host)
 */
export function causalBlockwise(ids: Int32Array | DocumentIds, options: { last?: number } = {}): Mask {
  const documents = documentsOf('causalBlockwise', ids);
  const { idOf, inside, source } = documents;
  const last = options.last ?? (onHost(source) ? greatest(source) : undefined);
  if (last === undefined) {
    throw new HeedError(
      'UNSUPPORTED',
      'causalBlockwise: the ids are a tensor on the device, so the last document is unknown; give its id as `last`',
    );
  }
  const wanted = uniform('lastDocument', 'i32');
  const queriesOfLast = tokensWhere(documents, 'query', (table) => table.spans.get(last) ?? []);
  const keysOfAny = tokensWhere(documents, 'key', (table) => spansWhere(table, (id) => id >= 0));
  const ofLast = maskFrom({
    predicate: inside.and(idOf(q).eq(wanted)).and(idOf(kv).ge(0)),
    uniforms: { ...documents.uniforms, lastDocument: last },
    captures: documents.captures,
    pattern: intersectPatterns(queriesOfLast, keysOfAny),
  });
  return sameDocument(documents).and(causal()).or(ofLast.and(causal()));
}

/**
 * Same document, and causal or among the first `prefix` tokens of the document (kv - start < prefix). Mask 11.
 * @throws HeedError UNSUPPORTED when the ids are a tensor: the starts are computed on the host
 */
export function prefixLmDocument(ids: Int32Array | DocumentIds, prefix: number): Mask {
  expectCount('prefixLmDocument', 'prefix', prefix, 0);
  const documents = documentsOf('prefixLmDocument', ids);
  const { table, tokens, batch, indexOf } = documents;
  if (table === undefined) {
    throw new HeedError(
      'UNSUPPORTED',
      "prefixLmDocument: the ids are a tensor on the device; read them and give the array, the documents' starts are needed",
    );
  }
  const starts = new Int32Array(batch * tokens);
  for (let entry = 0; entry < batch; entry++) {
    for (const spans of table(entry).spans.values()) {
      for (let i = 0; i < spans.length; i += 2) starts.fill(spans[0]!, entry * tokens + spans[i]!, entry * tokens + spans[i + 1]!);
    }
  }
  const inPrefix = maskFrom({
    predicate: documents.inside.and(kv.sub(capture('documentStarts', 'i32').at(indexOf(kv))).lt(uniform('documentPrefix', 'i32'))),
    uniforms: { ...documents.uniforms, documentPrefix: prefix },
    captures: { documentStarts: starts },
    pattern: tokensWhere(documents, 'key', (t) => prefixSpans(t, prefix)),
  });
  return sameDocument(documents).and(inPrefix.or(causal()));
}

/** Same document and no key of a later block of `block` tokens: kv < (floor(q / block) + 1) block. Mask 12. */
export function blockCausalDocument(ids: Int32Array | DocumentIds, block = 1024): Mask {
  return sameDocument(documentsOf('blockCausalDocument', ids)).and(blockCausal(block));
}

function greatest(ids: ArrayLike<number>): number {
  let found = -1;
  for (let i = 0; i < ids.length; i++) found = Math.max(found, ids[i]!);
  return found;
}

/** Spans of the tokens whose id passes. */
function spansWhere({ ends, ids }: DocumentTable, passes: (id: number) => boolean): Spans {
  const out: number[] = [];
  for (let i = 0; i < ends.length; i++) if (passes(ids[i]!)) appendSpan(out, i === 0 ? 0 : ends[i - 1]!, ends[i]!);
  return out;
}

/** Tokens before `prefix` of their document's first token, all documents together; padding counts as outside. */
function prefixSpans({ spans }: DocumentTable, prefix: number): Spans {
  const pieces: [number, number][] = [];
  for (const own of spans.values()) {
    const limit = own[0]! + prefix;
    for (let i = 0; i < own.length && own[i]! < limit; i += 2) pieces.push([own[i]!, Math.min(own[i + 1]!, limit)]);
  }
  const out: number[] = [];
  for (const [start, end] of pieces.sort((x, y) => x[0] - y[0])) appendSpan(out, start, end);
  return out;
}

/** An axis pattern over a set of tokens that the tables give, found once a batch entry. */
function tokensWhere({ table }: Documents, axis: 'query' | 'key', of: (table: DocumentTable) => Spans): MaskPattern {
  if (table === undefined) return { keys: unknownCoverage, queries: unknownCoverage };
  const found = new Map<DocumentTable, Spans>();
  return axisPattern(axis, (batch) => {
    const own = table(batch);
    let spans = found.get(own);
    if (spans === undefined) found.set(own, (spans = of(own)));
    return spans;
  });
}
