/** `vector_<name>(base, at)`: channels at .. at + 3 of the row at element `base`, zeros from `count` on, an expression. */
export function channelVector(name: string, width: number, count: string): string {
  if (width === 4)
    return `fn vector_${name}(base: u32, at: u32) -> vec4f { if (at < ${count}) { return load_${name}((base + at) / 4u); } return vec4f(); }`;
  const one = (x: string, c: number): string => `if (at + ${c}u < ${count}) { value.${x} = load_${name}(base + at + ${c}u); }`;
  return `fn vector_${name}(base: u32, at: u32) -> vec4f {
      var value = vec4f();
      ${['x', 'y', 'z', 'w'].map(one).join(' ')}
      return value;
    }`;
}
