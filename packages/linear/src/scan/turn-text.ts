// Cosines and sines of angles times positions, with the digits that large positions need: an angle is a fraction of a turn in 32 bits
// and a rest in f32, so that whole turns a token drop out in integers; polynomials: Cephes.

/** How queries and keys are turned: `concat` [x cos, x sin] a channel (twice the width), `rotate` neighbouring pairs of channels. */
export type TurnForm = 'concat' | 'rotate';

/** `turnOne(theta, position)` or, for four angles, `turnFour`: a struct of `cosine` and `sine`. */
export function turnText(name: 'turnOne' | 'turnFour'): string {
  const four = name === 'turnFour';
  const [real, whole, signed] = four ? ['vec4f', 'vec4u', 'vec4i'] : ['f32', 'u32', 'i32'];
  const result = four ? 'FourTurns' : 'OneTurn';
  const all = (x: string): string => `${real}(${x})`;
  const bits = (x: string): string => `${whole}(${x})`;
  return `
    struct ${result} { cosine: ${real}, sine: ${real} }
    // whole turns a token do not count
    fn ${name}(theta: ${real}, position: u32) -> ${result} {
      let size = abs(theta);
      let turns = size * 0.15915494;
      // what the product above has lost: products of 12 bits each are exact, with or without a fused multiply-add
      let coarse = bitcast<${real}>(bitcast<${whole}>(size) & ${bits('0xfffff000u')});
      let fine = size - coarse;
      let low = ((coarse * 0.15911865234375 - turns) + coarse * 3.629074853961356e-5 + fine * 0.15911865234375) + fine * 3.629074853961356e-5;
      let steps = fract(turns) * 4294967296.0;
      let whole = floor(steps);
      let phase = position * ${whole}(whole);
      let rest = (steps - whole) * 2.3283064365386963e-10 + low;
      let quarter = (phase + ${bits('0x20000000u')}) >> ${bits('30u')};
      let r = ${real}(bitcast<${signed}>(phase - (quarter << ${bits('30u')}))) * 1.4629180792672596e-9 + f32(position) * rest * 6.2831853;
      let z = r * r;
      let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
      let c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
      let odd = (quarter & ${bits('1u')}) == ${bits('1u')};
      let cosine = select(c, s, odd) * select(${all('1.0')}, ${all('-1.0')}, (quarter == ${bits('1u')}) | (quarter == ${bits('2u')}));
      let sine = select(s, c, odd) * select(${all('1.0')}, ${all('-1.0')}, quarter >= ${bits('2u')});
      return ${result}(cosine, select(sine, -sine, theta < ${all('0.0')}));
    }`;
}
