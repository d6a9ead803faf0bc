import { apply } from '../autodiff/tape.js';
import type { Device } from '../device/device.js';
import { HeedError } from '../errors.js';
import type { AppendContext, AttendOptions, KvCache } from '../seams/kv.js';
import type { KvGroupView, KvNeed } from '../seams/kv-stage.js';
import type { Bytes, Snapshot } from '../seams/mixer.js';
import { asContiguous } from '../tensor/copy.js';
import { tensor, zeros } from '../tensor/create.js';
import { holdsTensors, scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { attendStored, denseRows } from './attend.js';
import { checkAttendOptions, checkTokens } from './check.js';
import { clearExtra, createGroup, type GroupSizes, type KvGroup, statesOf } from './group.js';
import { appendRows } from './kernels/append.js';
import { addTokens } from './kernels/counts.js';
import { selectEntries } from './kernels/select.js';
import { bytesOf, checkManifest, manifestCount, manifestOf, readCache, restoreStates, snapshotStates, writeCache } from './snapshot.js';
import type { GroupStages } from './stages.js';

/** The one KV cache: rows of each head group in pages, written in place; attention in parts that are merged. */
export class PagedKvCache implements KvCache {
  static {
    // scopes keep the tensors of a cache that is returned from them
    Object.defineProperty(PagedKvCache.prototype, holdsTensors, {
      value(this: PagedKvCache): Tensor[] {
        return this.held();
      },
    });
  }
  readonly capacity: number;
  private readonly groups: readonly KvGroup[];
  /** i32: tokens seen [batch], tokens of the last append [batch], stored rows [batch, kvHeads]. */
  private readonly counts: Tensor;
  /** Rows that a head retains, u32 [kvHeads]. */
  private readonly retained: Tensor;
  private readonly maxBatch: number;
  private used: number;
  private seen = 0;
  /** Tokens seen when a padded batch last came in; 0: never, every entry has `seen` tokens. */
  private padded = 0;
  /** Tokens of the last append if it was padded, else 0. */
  private fresh = 0;
  private lengthsView: Tensor;
  private gone = false;

  constructor(
    private readonly device: Device,
    stages: readonly GroupStages[],
    private readonly sizes: GroupSizes,
  ) {
    const { batch, kvHeads, capacity } = sizes;
    this.capacity = capacity;
    this.maxBatch = batch;
    this.used = batch;
    this.counts = zeros(device, [batch * (2 + kvHeads)], { dtype: 'i32', label: 'kv cache counts' });
    this.groups = stages.map((group) => createGroup(device, group, sizes, this.counts));
    const retained = new Uint32Array(kvHeads);
    for (const { view } of this.groups) for (const head of view.heads) retained[head] = view.rows;
    this.retained = tensor(device, retained, [kvHeads], { label: 'kv cache retained rows' });
    this.lengthsView = this.viewLengths();
  }

  get tokens(): number {
    return this.seen;
  }

  get batch(): number {
    return this.used;
  }

  get views(): readonly KvGroupView[] {
    return this.groups.map(({ view }) => view);
  }

  get lengths(): Tensor {
    return this.lengthsView;
  }

  append(k: Tensor, v: Tensor, from: AppendContext = {}): void {
    this.assertAlive('append');
    const { kvHeads, headDim, valueDim } = this.sizes;
    checkTokens('kvCache.append', 'k', k, this.device, [this.used, 'n', kvHeads, headDim]);
    const n = k.dim(1);
    checkTokens('kvCache.append', 'v', v, this.device, [this.used, n, kvHeads, valueDim]);
    const { lengths } = from;
    if (lengths && (lengths.dtype !== 'i32' || lengths.rank !== 1 || lengths.size !== this.used))
      throw new HeedError(
        'SHAPE_MISMATCH',
        `kvCache.append: lengths is ${lengths.describe()}; it must be [${this.used}] i32, the valid tokens of each entry`,
      );
    this.checkNeeds(from);
    if (this.seen + n > this.capacity)
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `kvCache.append: ${n} tokens after ${this.seen} exceed the capacity of ${this.capacity}; make the cache with a larger capacity, truncate() it, or keep fewer rows by a tokens stage`,
      );
    if (n === 0) return;
    scope(() => this.store(k, v, n, from));
    this.seen += n;
    if (lengths) this.padded = this.seen;
    this.fresh = lengths ? n : 0;
  }

  async prepare(q: Tensor): Promise<void> {
    this.assertAlive('prepare');
    for (const { placement } of this.groups) await placement?.prepare(q);
  }

  attend(q: Tensor, options: AttendOptions = {}): Tensor {
    return scope(() => this.attendWithLse(q, options).out);
  }

  attendWithLse(q: Tensor, options: AttendOptions = {}): { out: Tensor; lse: Tensor } {
    this.assertAlive('attend');
    const { kvHeads, headDim } = this.sizes;
    checkTokens('kvCache.attend', 'q', q, this.device, [this.used, 'n', 'heads', headDim]);
    checkAttendOptions(options);
    const [, n = 0, heads = 0] = q.shape;
    if (heads % kvHeads !== 0)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `kvCache.attend: q has ${heads} heads, the cache ${kvHeads}; the query heads must be a multiple`,
      );
    const { pages } = options;
    if (pages && (pages.dtype !== 'u32' || pages.rank !== 3 || pages.dim(0) !== this.used || pages.dim(1) !== kvHeads))
      throw new HeedError(
        'SHAPE_MISMATCH',
        `kvCache.attend: pages is ${pages.describe()}; it must be [${this.used}, ${kvHeads}, n] u32, page numbers`,
      );
    if (n > this.seen)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `kvCache.attend: q has ${n} tokens, the cache has seen ${this.seen}; queries are the newest tokens, append their keys first`,
      );
    const dropping = this.groups.find(({ view }) => view.recent > 0 && this.seen > view.rows);
    if (n > 1 && dropping)
      throw new HeedError(
        'UNSUPPORTED',
        `kvCache.attend: ${n} queries, and head group "${dropping.view.name}" has dropped rows that the earlier ones must see; ` +
          'attend a prompt with attention() and append it afterwards, then step one token at a time',
      );
    if (this.padded > 0 && n > 1 && n > this.seen - this.padded && n !== this.fresh)
      throw new HeedError(
        'UNSUPPORTED',
        `kvCache.attend: ${n} queries reach into a padded append that ended at token ${this.padded} of ${this.seen}; attend exactly its tokens right after it, or fewer tokens later`,
      );
    const [out, lse] = apply<readonly [Tensor, Tensor]>({
      name: 'kvCache.attend',
      inputs: [q],
      forward: () =>
        attendStored(this.groups, this.sizes, { seen: this.seen, uneven: this.padded > 0, padded: this.fresh === n }, q, options),
    });
    return { out, lse };
  }

  /** The stored rows as dense tensors, [batch, rows, kvHeads, dim] f32: rows that a head has dropped or never had are zeros at its end. */
  rows(): { k: Tensor; v: Tensor } {
    this.assertAlive('rows');
    const most = Math.max(...this.groups.map(({ view }) => Math.min(this.seen, view.rows)));
    return scope(() => denseRows(this.groups, this.sizes, { batch: this.used, first: 0, rows: most, dtype: 'f32' }));
  }

  bytes(): Bytes {
    this.assertAlive('bytes');
    return bytesOf(this.groups, [this.counts, this.retained]);
  }

  truncate(tokens: number): void {
    this.assertAlive('truncate');
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.seen)
      throw new HeedError('INVALID_ARGUMENT', `kvCache.truncate: ${tokens} tokens of ${this.seen}; give an integer from 0 to ${this.seen}`);
    if (tokens === this.seen) return;
    const dropping = this.groups.find(({ view }) => view.recent > 0 && this.seen > view.rows);
    if (dropping && tokens > 0)
      throw new HeedError(
        'UNSUPPORTED',
        `kvCache.truncate: head group "${dropping.view.name}" has overwritten rows that would be needed again; restore a snapshot, or truncate to 0`,
      );
    if (tokens < this.padded && tokens > 0)
      throw new HeedError(
        'UNSUPPORTED',
        `kvCache.truncate: ${tokens} tokens lie inside a padded append that ended at ${this.padded}; truncate to ${this.padded} or more, or to 0`,
      );
    for (const group of this.groups) for (const state of statesOf(group)) state.truncate(tokens);
    // to nothing: every count is cleared, whatever each entry holds
    scope(() => this.count({ tokens: tokens === 0 ? -this.seen : tokens - this.seen, offset: 0 }));
    this.seen = tokens;
    this.fresh = 0;
    if (tokens > 0) return;
    this.padded = 0;
    for (const group of this.groups) clearExtra(group);
  }

  select(batch: Tensor): void {
    this.assertAlive('select');
    if (batch.dtype !== 'u32' || batch.rank !== 1)
      throw new HeedError('SHAPE_MISMATCH', `kvCache.select: batch is ${batch.describe()}; it must be a list of batch entries, u32 [n]`);
    if (batch.size < 1 || batch.size > this.maxBatch)
      throw new HeedError('LIMIT_EXCEEDED', `kvCache.select: ${batch.size} entries; this cache has room for 1 to ${this.maxBatch}`);
    for (const group of this.groups) for (const state of statesOf(group)) state.select(batch);
    const sizes = { batch: this.used, maxBatch: this.maxBatch, kvHeads: this.sizes.kvHeads, tokens: this.seen };
    scope(() => selectEntries(this.device, this.groups, this.counts, asContiguous(batch, 1), sizes));
    this.resize(batch.size);
  }

  async snapshot(): Promise<Snapshot> {
    this.assertAlive('snapshot');
    const state = { batch: this.used, tokens: this.seen };
    const { padded } = this;
    const kept = await snapshotStates(this.groups);
    return {
      manifest: { ...manifestOf(this.groups, this.capacity), ...state, padded, ...kept.manifest },
      arrays: { ...(await readCache(this.groups, this.counts, state)), ...kept.arrays },
    };
  }

  restore({ manifest, arrays }: Snapshot): void {
    this.assertAlive('restore');
    checkManifest(manifestOf(this.groups, this.capacity), manifest);
    const batch = manifestCount(manifest, 'batch', this.maxBatch);
    const tokens = manifestCount(manifest, 'tokens', this.capacity);
    const padded = manifestCount(manifest, 'padded', tokens);
    writeCache(this.groups, this.counts, { batch, tokens }, arrays);
    restoreStates(this.groups, { manifest, arrays });
    this.seen = tokens;
    this.padded = padded;
    this.fresh = 0;
    this.resize(batch);
  }

  dispose(): void {
    if (this.gone) return;
    this.gone = true;
    for (const held of this.held()) held.dispose();
    for (const group of this.groups) for (const state of statesOf(group)) state.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private held(): Tensor[] {
    return [
      this.counts,
      this.retained,
      this.lengthsView,
      ...this.groups.flatMap(({ view, extra }) => [view.keys, view.values, view.index, ...(extra ? [extra] : [])]),
    ];
  }

  private assertAlive(what: string): void {
    if (this.gone) throw new HeedError('DISPOSED', `kvCache.${what}: the cache was disposed; make another with createKvCache()`);
  }

  private checkNeeds(from: AppendContext): void {
    for (const { stages } of this.groups) {
      for (const stage of [stages.tokens, stages.rows, stages.elements, stages.codes, stages.placement]) {
        const absent = stage?.needs?.find((need: KvNeed) => from[need] === undefined);
        if (stage && absent)
          throw new HeedError(
            'INVALID_ARGUMENT',
            `kvCache.append: stage ${stage.name} needs "${absent}" of the appended tokens; pass it as append(k, v, { ${absent} })`,
          );
      }
    }
  }

  /** Writes rows in pieces that no ring is shorter than, so that a row leaves before its slot is written. */
  private store(k: Tensor, v: Tensor, n: number, from: AppendContext): void {
    const { lengths } = from;
    const changed = this.groups.map(({ stages, elements }) => stages.elements?.apply({ k, v }, from, elements) ?? { k, v });
    const piece = Math.min(n, ...this.groups.map(({ view }) => view.recent || n));
    for (let offset = 0; offset < n; offset += piece) {
      const tokens = Math.min(piece, n - offset);
      this.groups.forEach(({ view, stages, extra }, g) => {
        if (stages.rows && extra && view.recent > 0 && this.seen + offset + tokens > view.rows)
          stages.rows.leave(view, extra, { batch: this.used, tokens, offset, lengths });
        const rows = changed[g] ?? { k, v };
        appendRows(this.device, view, rows.k, rows.v, { tokens, offset, lengths });
      });
      this.count({ tokens, offset, lengths });
    }
  }

  private count(piece: { tokens: number; offset: number; lengths?: Tensor | undefined }): void {
    const sizes = { batch: this.used, maxBatch: this.maxBatch, kvHeads: this.sizes.kvHeads };
    addTokens(this.device, this.counts, this.retained, sizes, piece);
  }

  private viewLengths(): Tensor {
    const { kvHeads } = this.sizes;
    return this.counts.view({ shape: [this.used, kvHeads], strides: [kvHeads, 1], offset: 2 * this.maxBatch });
  }

  private resize(batch: number): void {
    if (batch === this.used) return;
    this.used = batch;
    this.lengthsView.dispose();
    this.lengthsView = this.viewLengths().keep();
  }
}
