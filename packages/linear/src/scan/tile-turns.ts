// Turns of a tile of tokens in the registers that hold it, by halves: each lane holds the cosines and sines of its eight channels at one token,
// in f32, and steps them from row to row by a product of complex numbers. Angles are computed in integers before the first
// chunk alone: the text that computes them again inside the loop took a tenth of the kernel's time, taken or not.
// registers  32 floats a lane for angle and step (16 for pairs)
// error      4e-6 (largest 1e-5) after 4,096 tokens, 6e-5 (2e-4) after the 32,768 at which plans cut; halves of cosines and their products
//            round twice, 3e-4
import { range } from '@heed/core/~internal';
import { type TurnForm, turnText } from './turn-text.js';

/** Most tokens that angles are stepped through. */
export const mostTurned = 32768;

/** A tile whose rows are turned; see `HeldTile`. */
export interface TileTurnsOptions {
  form: TurnForm;
  /** Elements of a row before it is turned. */
  headDim: number;
  rows: number;
  width: number;
  lanes: number;
  /** First element of the turned row. */
  first: string;
}

/** Whether the items of a lane lie in one column of eights, evenly apart, so that one step leads from each to the next. */
export function stepsEvenly({ width, lanes }: Pick<TileTurnsOptions, 'width' | 'lanes'>): boolean {
  return lanes % (width / 8) === 0;
}

/** Text of the turns of a tile; one for queries and keys, whose positions and angles are the same. */
export class TileTurns {
  private readonly items: number;
  private readonly across: number;
  /** Vectors of an item's angles: eight, or four pairs. */
  private readonly halves: readonly ('a' | 'b')[];

  constructor(private readonly o: TileTurnsOptions) {
    this.across = o.width / 8;
    this.items = Math.ceil((o.rows * this.across) / o.lanes);
    this.halves = o.form === 'concat' ? ['a', 'b'] : ['a'];
  }

  /** The channel that an element of the turned row is made of. */
  source(element: string): string {
    return this.o.form === 'concat' ? `${element} % ${this.o.headDim}u` : element;
  }

  /** What the text below calls. */
  functions(): string {
    return turnText('turnFour') + turnedEights[this.o.form];
  }

  /** Before the first chunk, which begins at `at`. */
  begin(): string {
    const { form, headDim, first } = this.o;
    const vectors = this.halves.flatMap((h) => [`turnC${h}`, `turnS${h}`, `stepC${h}`, `stepS${h}`]);
    return `
        let element = ${first} + lane % ${this.across}u * 8u;
        ${
          form === 'concat'
            ? `let ofSine = element >= ${headDim}u;
        let angle = head * ${headDim}u + element % ${headDim}u;`
            : `let angle = min(element, ${headDim - 8}u) / 2u;`
        }
        ${vectors.map((name) => `var ${name} = vec4f();`).join(' ')}
        { ${this.exact()} }`;
  }

  /** At the head of chunk after chunk: the factors of its items; angles go on to the next chunk. */
  factors(): string {
    const onward = this.halves
      .map(
        (h) => `{
            let c = turnC${h} * stepC${h} - turnS${h} * stepS${h};
            turnS${h} = turnS${h} * stepC${h} + turnC${h} * stepS${h};
            turnC${h} = c;
          }`,
      )
      .join(' ');
    const way = (i: number): string =>
      this.o.form === 'concat'
        ? `let way${i}a = vec4<f16>(turnCa); let way${i}b = vec4<f16>(turnCb);`
        : `let way${i}a = turnCa; let way${i}b = turnSa;`;
    return range(this.items)
      .map((i) => `${way(i)} ${onward}`)
      .join('\n');
  }

  private exact(): string {
    const { form, rows, lanes } = this.o;
    const four = (h: 'a' | 'b'): string => `
            {
              let theta = vec4f(${[0, 1, 2, 3].map((e) => `load_theta(angle + ${h === 'a' ? e : e + 4}u)`).join(', ')});
              let now = turnFour(theta, position);
              let step = turnFour(theta, ${Math.min(rows, lanes / this.across)}u);
              ${
                form === 'concat'
                  ? // a sine is the cosine a quarter of a turn before
                    `turnC${h} = select(now.cosine, now.sine, ofSine);
              turnS${h} = select(now.sine, -now.cosine, ofSine);`
                  : `turnC${h} = now.cosine;
              turnS${h} = now.sine;`
              }
              stepC${h} = step.cosine;
              stepS${h} = select(step.sine, -step.sine, uniforms.reverse == 1u);
            }`;
    return `
            // rows behind the last are zeros, which take any finite factor
            let position = tokenAt(min(at + lane / ${this.across}u, max(length, 1u) - 1u), length) + uniforms.turnOffset;
            ${this.halves.map(four).join('\n')}`;
  }

  /** `held`, eight halves of item i, turned. */
  turned(held: string, i: number): string {
    return `${this.o.form === 'concat' ? 'concatEight' : 'rotatedEight'}(${held}, way${i}a, way${i}b)`;
  }
}

const turnedEights: Record<TurnForm, string> = {
  concat: `
      fn concatEight(x: vec4u, lower: vec4<f16>, upper: vec4<f16>) -> vec4u {
        return vec4u(bitcast<vec2u>(bitcast<vec4<f16>>(x.xy) * lower), bitcast<vec2u>(bitcast<vec4<f16>>(x.zw) * upper));
      }`,
  rotate: `
      fn rotatedFour(x: vec4f, cosine: vec2f, sine: vec2f) -> vec2u {
        return fourOf(x * cosine.xxyy + x.yxwz * vec4f(-sine.x, sine.x, -sine.y, sine.y));
      }
      fn rotatedEight(x: vec4u, cosine: vec4f, sine: vec4f) -> vec4u {
        return vec4u(
          rotatedFour(vec4f(bitcast<vec4<f16>>(x.xy)), cosine.xy, sine.xy),
          rotatedFour(vec4f(bitcast<vec4<f16>>(x.zw)), cosine.zw, sine.zw),
        );
      }`,
};
