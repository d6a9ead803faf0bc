import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { unroll } from '../../kernel/modules.js';
import { laneBuiltins } from '../../kernel/wgsl/lanes.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { scanned } from '../cumsum.js';
import { type KeyKind, keyOf, orderedKeyModule } from './keys.js';

// Least-significant-digit radix sort of key-value rows, 4-bit digits, stable. Per digit three dispatches: counts a tile,
// their scan, ranked scatter. No workgroup waits for another, so it needs no forward-progress guarantee. In all a digit reads 12 and
// writes 8 bytes an element.
// source  Satish, Harris, Garland 2009 (section 4); packed per-lane counters in place of ballots
/** Elements a workgroup: 256 lanes x 4. */
const tileLength = 1024;
const digits = 16;

// Keys whose unsigned order is the order asked for, and positions as values.
// tile    1 element a lane, 256 lanes
// bytes   reads one element, writes 8
const toKeys = defineKernel({
  name: 'sort-keys',
  bindings: { x: read('any'), keys: write('u32'), values: write('u32') },
  uniforms: { rows: 'u32', n: 'u32', rowStride: 'u32' },
  modules: (spec: { kind: KeyKind; descending: boolean }) => [orderedKeyModule(spec.kind, spec.descending)],
  wgsl: ({ kind }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * uniforms.n) { return; }
      let row = i / uniforms.n;
      let at = i % uniforms.n;
      store_keys(i, ${keyOf(kind, 'row * uniforms.rowStride + at')});
      store_values(i, at);
    }`,
});

// How often each digit occurs in each tile, digit by digit, so that one scan gives every tile its places.
// tile    1,024 elements, 256 lanes
// bytes   reads 4 an element, writes 64 a tile
// limits  65,535 tiles a row, 65,535 rows
const countDigits = defineKernel({
  name: 'sort-count',
  bindings: { keys: read('u32'), counts: write('u32') },
  uniforms: { n: 'u32', tiles: 'u32', shift: 'u32', digitMask: 'u32' },
  wgsl: () => `
    var<workgroup> bins: array<atomic<u32>, ${digits}>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      if (lane < ${digits}u) { atomicStore(&bins[lane], 0u); }
      workgroupBarrier();
      for (var e = 0u; e < 4u; e++) {
        let i = group.x * ${tileLength}u + e * 256u + lane;
        if (i < uniforms.n) { atomicAdd(&bins[(load_keys(group.y * uniforms.n + i) >> uniforms.shift) & uniforms.digitMask], 1u); }
      }
      workgroupBarrier();
      if (lane < ${digits}u) { store_counts((group.y * ${digits}u + lane) * uniforms.tiles + group.x, atomicLoad(&bins[lane])); }
    }`,
});

type ScatterSpec = { bySubgroup: boolean };

// Moves each element behind the equal digits of the tiles before it, and of the elements before it in its own tile.
// tile    1,024 elements: 256 lanes x 4 consecutive
// bytes   reads 8 an element and 64 a tile, writes 8 an element; 8 KiB of workgroup memory
// limits  65,535 tiles a row, 65,535 rows
const scatter = defineKernel({
  name: 'sort-scatter',
  bindings: { keys: read('u32'), values: read('u32'), offsets: read('u32'), outKeys: write('u32'), outValues: write('u32') },
  uniforms: { n: 'u32', tiles: 'u32', shift: 'u32', digitMask: 'u32' },
  tier: ({ bySubgroup }: ScatterSpec) => (bySubgroup ? 'subgroups' : 'baseline'),
  forms: ['baseline', 'subgroups'],
  // sixteen 16-bit counters in eight words: digit d in word d / 2, half d % 2; a tile has 1024 elements, so no counter overflows
  wgsl: ({ bySubgroup }: ScatterSpec) => `
    var<workgroup> low: array<vec4u, 256>;
    var<workgroup> high: array<vec4u, 256>;
    fn counter(a: vec4u, b: vec4u, digit: u32) -> u32 {
      let word = digit >> 1u;
      return (select(a[word & 3u], b[word & 3u], word >= 4u) >> ((digit & 1u) * 16u)) & 0xffffu;
    }
    fn one(digit: u32, upper: bool) -> vec4u {
      let word = digit >> 1u;
      let value = 1u << ((digit & 1u) * 16u);
      return select(vec4u(0u), vec4u(value), vec4<bool>(vec4u(word) == select(vec4u(0u, 1u, 2u, 3u), vec4u(4u, 5u, 6u, 7u), upper)));
    }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(bySubgroup ? 'subgroups' : 'memory')}) {
      let base = group.y * uniforms.n;
      let first = group.x * ${tileLength}u + lane * 4u;
      var a = vec4u(0u); var b = vec4u(0u);
      ${unroll(
        4,
        (e) => `
        var key${e} = 0u; var digit${e} = 0u; var rank${e} = 0u;
        if (first + ${e}u < uniforms.n) {
          key${e} = load_keys(base + first + ${e}u);
          digit${e} = (key${e} >> uniforms.shift) & uniforms.digitMask;
          rank${e} = counter(a, b, digit${e});
          a += one(digit${e}, false); b += one(digit${e}, true);
        }`,
      )}
      ${
        bySubgroup
          ? `let beforeA = subgroupExclusiveAdd(a); let beforeB = subgroupExclusiveAdd(b);
      if (subgroupLane == subgroupSize - 1u) { low[lane / subgroupSize] = beforeA + a; high[lane / subgroupSize] = beforeB + b; }
      workgroupBarrier();
      a = beforeA; b = beforeB;
      for (var s = 0u; s < lane / subgroupSize; s++) { a += low[s]; b += high[s]; }`
          : `let ownA = a; let ownB = b;
      low[lane] = a; high[lane] = b;
      workgroupBarrier();
      for (var step = 1u; step < 256u; step <<= 1u) {
        var leftA = vec4u(0u); var leftB = vec4u(0u);
        if (lane >= step) { leftA = low[lane - step]; leftB = high[lane - step]; }
        workgroupBarrier();
        low[lane] += leftA; high[lane] += leftB;
        workgroupBarrier();
      }
      a = low[lane] - ownA; b = high[lane] - ownB;`
      }
      ${unroll(
        4,
        (e) => `
        if (first + ${e}u < uniforms.n) {
          let to = base + load_offsets((group.y * ${digits}u + digit${e}) * uniforms.tiles + group.x) + counter(a, b, digit${e}) + rank${e};
          store_outKeys(to, key${e});
          store_outValues(to, load_values(base + first + ${e}u));
        }`,
      )}
    }`,
});

/** Keys and values of rows before sorting: ordered u32 keys, and positions as values. */
export function radixKeys(
  x: Tensor,
  kind: KeyKind,
  descending: boolean,
  rows: number,
  n: number,
  rowStride: number,
): { keys: Tensor; values: Tensor } {
  const keys = empty(x.device, [rows, n], 'u32');
  const values = empty(x.device, [rows, n], 'u32');
  toKeys.run(x.device, {
    spec: { kind, descending },
    tensors: { x, keys, values },
    uniforms: { rows, n, rowStride },
    grid: [Math.ceil((rows * n) / 256)],
  });
  return { keys, values };
}

/** Sorts rows of keys [rows, n] with their values by the lowest `bits` bits; stable. Always new tensors. */
export function radixSort(keys: Tensor, values: Tensor, bits: number): { keys: Tensor; values: Tensor } {
  const { device } = keys;
  const [rows, n] = [keys.dim(0), keys.dim(1)];
  const tiles = Math.max(1, Math.ceil(n / tileLength));
  const counts = empty(device, [rows, digits * tiles], 'u32');
  let from = { keys, values };
  let to = { keys: empty(device, [rows, n], 'u32'), values: empty(device, [rows, n], 'u32') };
  let spare = bits > 4 ? { keys: empty(device, [rows, n], 'u32'), values: empty(device, [rows, n], 'u32') } : to;
  for (let shift = 0; shift < bits; shift += 4) {
    const digitMask = 2 ** Math.min(4, bits - shift) - 1;
    countDigits.run(device, {
      spec: {},
      tensors: { keys: from.keys, counts },
      uniforms: { n, tiles, shift, digitMask },
      grid: [tiles, rows, 1],
    });
    const offsets = scanned(counts, 1, { reverse: false, exclusive: true });
    scatter.run(device, {
      spec: { bySubgroup: device.capabilities.subgroups },
      tensors: { keys: from.keys, values: from.values, offsets, outKeys: to.keys, outValues: to.values },
      uniforms: { n, tiles, shift, digitMask },
      grid: [tiles, rows, 1],
    });
    offsets.dispose();
    const written = to;
    to = from.keys === keys ? spare : from;
    spare = to;
    from = written;
  }
  return from;
}
