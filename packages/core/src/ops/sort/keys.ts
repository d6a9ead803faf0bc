import type { WgslModule } from '../../kernel/modules.js';

/** How a dtype becomes a u32 whose unsigned order is the order of the values. */
export type KeyKind = 'f32' | 'i32' | 'u32';

/** `orderedKey(bits)`: u32 keys that sort as the values do; -0 counts as 0. */
export function orderedKeyModule(kind: KeyKind, descending: boolean): WgslModule {
  const body =
    kind === 'f32'
      ? 'let b = select(bits, 0u, bits == 0x80000000u); let k = select(b | 0x80000000u, ~b, (b & 0x80000000u) != 0u);'
      : kind === 'i32'
        ? 'let k = bits ^ 0x80000000u;'
        : 'let k = bits;';
  return {
    name: `ordered-key-${kind}-${descending ? 'down' : 'up'}`,
    text: `fn orderedKey(bits: u32) -> u32 { ${body} return ${descending ? '~k' : 'k'}; }`,
  };
}

/** WGSL of the u32 key of element `i` of binding x. */
export function keyOf(kind: KeyKind, index: string): string {
  return `orderedKey(${kind === 'u32' ? `load_x(${index})` : `bitcast<u32>(load_x(${index}))`})`;
}
