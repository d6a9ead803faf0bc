// A short name for a long text: four 32-bit lanes of multiply-xorshift mixing (after murmur3's finaliser), 28 characters of base 36.
// Not for security: it names pipelines, and 128 bits keep accidental collisions out of reach.

/** Hash of a text as 28 characters [0-9a-z]. */
export function hash128(text: string): string {
  const lanes = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 0xdeadbeef];
  const factors = [0x85ebca6b, 0xc2b2ae35, 0x27d4eb2f, 0x165667b1];
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    for (let lane = 0; lane < 4; lane++) {
      const mixed = Math.imul(lanes[lane]! ^ unit, factors[lane]!);
      lanes[lane] = mixed ^ (mixed >>> (13 + lane));
    }
  }
  return lanes
    .map((lane, i) => {
      let h = lane ^ text.length ^ lanes[(i + 1) % 4]!;
      h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
      h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
      return ((h ^ (h >>> 16)) >>> 0).toString(36).padStart(7, '0');
    })
    .join('');
}
