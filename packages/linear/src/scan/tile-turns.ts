// Turns of a tile of tokens as it leaves registers: each lane holds the cosines and sines of its eight channels at one token and steps
// them from row to row by a product of complex numbers; angles are computed anew every `anew` steps, in integers.
// registers  32 floats a lane for angle and step (16 for pairs), and 8 factors an item
// error      a step adds 1e-7, so 1e-5 at most beside the 5e-4 of f16
import { type TurnForm, turnText } from './turn-text.js';

/** Chunks after which angles are computed anew. */
const anew = 32;

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

  /** Most that a turn makes of a largest magnitude. */
  get growth(): string {
    return this.o.form === 'concat' ? '' : ' * 1.4142136';
  }

  /** What the text below calls. */
  functions(): string {
    return turnText('turnFour') + turnedEights[this.o.form];
  }

  declare(): string {
    const vectors = this.halves.flatMap((h) => [`turnC${h}`, `turnS${h}`, `stepC${h}`, `stepS${h}`]);
    return `var chunksTurned = 0u; ${vectors.map((name) => `var ${name} = vec4f();`).join(' ')}`;
  }

  /** At the head of a chunk: the factors of every item of its tokens from `at` on. */
  chunk(): string {
    const { form } = this.o;
    const items = Array.from({ length: this.items }, (_, i) => i);
    const factors = (i: number): string =>
      form === 'concat' ? `let way${i}a = turnCa; let way${i}b = turnCb;` : `let way${i}a = turnCa; let way${i}b = turnSa;`;
    const step = this.halves
      .map(
        (h) =>
          `{ let c = turnC${h} * stepC${h} - turnS${h} * stepS${h}; turnS${h} = turnS${h} * stepC${h} + turnC${h} * stepS${h}; turnC${h} = c; }`,
      )
      .join(' ');
    return `
          if (chunksTurned % ${anew}u == 0u) { ${this.exact()} }
          chunksTurned += 1u;
          ${items.map((i) => `${factors(i)} ${step}`).join('\n')}`;
  }

  /** `held`, eight halves of item i, turned and times `factor`. */
  turned(held: string, i: number, factor: string): string {
    return `${this.o.form === 'concat' ? 'concatEight' : 'rotatedEight'}(${held}, way${i}a, way${i}b, ${factor})`;
  }

  private exact(): string {
    const { form, headDim, first, rows, lanes } = this.o;
    const stepRows = Math.min(rows, lanes / this.across);
    const four = (h: 'a' | 'b'): string => {
      const base = h === 'a' ? 'angle' : 'angle + 4u';
      return `
            {
              let base = ${base};
              let theta = vec4f(load_theta(base), load_theta(base + 1u), load_theta(base + 2u), load_theta(base + 3u));
              let now = turnFour(theta, position);
              let step = turnFour(theta, ${stepRows}u);
              ${
                form === 'concat'
                  ? // a sine is the cosine a quarter of a turn before
                    `turnC${h} = select(now.cosine, now.sine, ofSine);
              turnS${h} = select(now.sine, -now.cosine, ofSine);`
                  : `turnC${h} = now.cosine; turnS${h} = now.sine;`
              }
              stepC${h} = step.cosine;
              stepS${h} = select(step.sine, -step.sine, uniforms.reverse == 1u);
            }`;
    };
    return `
            let position = tokenAt(at + lane / ${this.across}u, length) + uniforms.turnOffset;
            let element = ${first} + lane % ${this.across}u * 8u;
            ${
              form === 'concat'
                ? `let ofSine = element >= ${headDim}u;
            let angle = head * ${headDim}u + element % ${headDim}u;`
                : `let angle = min(element, ${headDim - 8}u) / 2u;`
            }
            ${this.halves.map(four).join('\n')}`;
  }
}

const turnedEights: Record<TurnForm, string> = {
  concat: `
      fn concatEight(x: vec4u, lower: vec4f, upper: vec4f, factor: f32) -> vec4u {
        return vec4u(fourOf(vec4f(bitcast<vec4<f16>>(x.xy)) * (lower * factor)), fourOf(vec4f(bitcast<vec4<f16>>(x.zw)) * (upper * factor)));
      }`,
  rotate: `
      fn rotatedFour(x: vec4f, cosine: vec2f, sine: vec2f) -> vec4f {
        return x * cosine.xxyy + x.yxwz * vec4f(-sine.x, sine.x, -sine.y, sine.y);
      }
      fn rotatedEight(x: vec4u, cosine: vec4f, sine: vec4f, factor: f32) -> vec4u {
        let lower = rotatedFour(vec4f(bitcast<vec4<f16>>(x.xy)), cosine.xy, sine.xy);
        let upper = rotatedFour(vec4f(bitcast<vec4<f16>>(x.zw)), cosine.zw, sine.zw);
        return vec4u(fourOf(lower * factor), fourOf(upper * factor));
      }`,
};
