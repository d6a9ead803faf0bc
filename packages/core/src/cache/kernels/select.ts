// Keeps and copies sequences of a cache: what `select` of a cache records. Pages of a sequence that is named once change hands by
// their table alone; only those of a sequence that is named again are copied.
import type { Device } from '../../device/device.js';
import { read, readWrite, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { copyContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { KvGroup } from '../group.js';

// Whose pages each entry gets [maxBatch], and whose rows it holds [maxBatch]. The first entry that names a sequence takes over its
// pages; a further one, and each entry behind the kept ones, gets the pages of a sequence that nobody names.
// tile    1 lane: a batch is short, and each choice waits for the one before
// bytes   reads at most 4 kept for each entry and each spare sequence, writes 8 maxBatch
// limits  a sequence beyond the batch counts as the last one
const planSelection = defineKernel({
  name: 'kv-select-plan',
  bindings: { chosen: read('u32'), moves: write('u32') },
  uniforms: { batch: 'u32', kept: 'u32', maxBatch: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(1)
    fn main() {
      var spare = 0u;
      for (var b = 0u; b < uniforms.maxBatch; b++) {
        var wanted = 0xffffffffu;
        if (b < uniforms.kept) { wanted = min(load_chosen(b), uniforms.batch - 1u); }
        var owner = wanted != 0xffffffffu;
        if (owner) { for (var a = 0u; a < b; a++) { if (min(load_chosen(a), uniforms.batch - 1u) == wanted) { owner = false; } } }
        var pages = wanted;
        if (!owner) {
          // the next sequence that no entry names
          loop {
            var named = false;
            for (var a = 0u; a < uniforms.kept; a++) { if (min(load_chosen(a), uniforms.batch - 1u) == spare) { named = true; } }
            if (!named || spare >= uniforms.maxBatch) { break; }
            spare++;
          }
          pages = spare;
          spare++;
        }
        store_moves(b, pages);
        store_moves(uniforms.maxBatch + b, select(wanted, pages, wanted == 0xffffffffu));
      }
    }`,
});

// Rows of words (page tables, counts, what a stage keeps a sequence) in the order of `moves`.
// tile    1 word a lane, 64 lanes
// bytes   reads 8, writes 4 a word
// limits  `before` is a copy of `after`: no dispatch reads what it writes
const permuteWords = defineKernel({
  name: 'kv-select-words',
  bindings: { moves: read('u32'), before: read('any', { raw: 'u32' }), after: readWrite('any', { raw: 'u32' }) },
  uniforms: { movesAt: 'u32', first: 'u32', row: 'u32', items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.items) { return; }
      let source = load_moves(uniforms.movesAt + i / uniforms.row);
      after[base_after() + uniforms.first + i] = before[base_before() + uniforms.first + source * uniforms.row + i % uniforms.row];
    }`,
});

// Copies the used pages of each entry that does not own the pages whose rows it holds.
// tile    1 word a lane, 64 lanes
// bytes   a copied word reads 20 (16 of them shared by its page) and writes 4; a lane of an entry that owns its pages reads 8 and stops
// limits  in place: the pages written are of sequences that nobody names, so no lane reads them
const copyPages = defineKernel({
  name: 'kv-select-pages',
  bindings: { moves: read('u32'), before: read('u32'), pool: readWrite('u32') },
  uniforms: { maxBatch: 'u32', tableAt: 'u32', pages: 'u32', used: 'u32', pageWords: 'u32', items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.items) { return; }
      let word = i % uniforms.pageWords;
      let page = i / uniforms.pageWords % uniforms.used;
      let b = i / uniforms.pageWords / uniforms.used;
      let owner = load_moves(b);
      let source = load_moves(uniforms.maxBatch + b);
      if (owner == source) { return; }
      let destination = load_before(uniforms.tableAt + owner * uniforms.pages + page);
      let origin = load_before(uniforms.tableAt + source * uniforms.pages + page);
      store_pool(destination * uniforms.pageWords + word, load_pool(origin * uniforms.pageWords + word));
    }`,
});

/** @param tokens most tokens that a sequence holds */
export function selectEntries(
  device: Device,
  groups: readonly KvGroup[],
  counts: Tensor,
  chosen: Tensor,
  sizes: { batch: number; maxBatch: number; kvHeads: number; tokens: number },
): void {
  const { batch, maxBatch, kvHeads, tokens } = sizes;
  const kept = chosen.size;
  const moves = empty(device, [2 * maxBatch], 'u32');
  planSelection.run(device, { spec: {}, tensors: { chosen, moves }, uniforms: { batch, kept, maxBatch }, grid: [1] });
  const permute = (x: Tensor, first: number, row: number, rowsOf: 'pages' | 'rows'): void => {
    const items = maxBatch * row;
    permuteWords.run(device, {
      spec: {},
      tensors: { moves, before: copyContiguous(x), after: x },
      uniforms: { movesAt: rowsOf === 'pages' ? 0 : maxBatch, first, row, items },
      grid: [Math.ceil(items / 64)],
    });
  };
  for (const { view, extra } of groups) {
    const tableAt = view.heads.length;
    const used = Math.ceil(Math.min(tokens, view.rows) / view.pageTokens);
    const before = copyContiguous(view.index);
    for (const pool of used > 0 ? [view.keys, view.values] : []) {
      const pageWords = pool.size / (maxBatch * view.pages);
      const items = kept * used * pageWords;
      copyPages.run(device, {
        spec: {},
        tensors: { moves, before, pool },
        uniforms: { maxBatch, tableAt, pages: view.pages, used, pageWords, items },
        grid: [Math.ceil(items / 64)],
      });
    }
    permute(view.index, tableAt, view.pages, 'pages');
    if (extra) permute(extra, 0, extra.size / maxBatch, 'rows');
  }
  permute(counts, 0, 1, 'rows');
  permute(counts, maxBatch, 1, 'rows');
  permute(counts, 2 * maxBatch, kvHeads, 'rows');
}
