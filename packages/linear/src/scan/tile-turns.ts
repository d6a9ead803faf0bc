// Turns of a tile of tokens in the registers that hold it. The angle at row r of a chunk is that of the chunk's first row, which a lane an angle
// steps from chunk to chunk and leaves in workgroup memory, plus that of r, which each lane holds as a complex number: their
// product turns a row. Every 64 chunks the angles of the first row are computed anew, in integers, from its position.
// registers  16 floats an item of eight halves (8 for pairs), 6 more
// memory     8 bytes an angle
// error      a step adds 1e-7, so 6e-6 at most beside the 5e-4 of f16
import { type TurnForm, turnText } from './turn-text.js';

/** Chunks after which angles are computed anew. */
const anew = 64;

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

/** Whether the items of a lane lie in one column of eights, evenly apart, so that they share their angles, and every angle has a lane. */
export function turnsTile(tile: Omit<TileTurnsOptions, 'first' | 'rows'>): boolean {
  return tile.lanes % (tile.width / 8) === 0 && anglesOf(tile) <= tile.lanes;
}

/** Angles of a head. */
export function anglesOf({ form, headDim }: Pick<TileTurnsOptions, 'form' | 'headDim'>): number {
  return form === 'concat' ? headDim : headDim / 2;
}

/** Workgroup memory of turns. */
export function turnBytes(tile: Pick<TileTurnsOptions, 'form' | 'headDim'>): number {
  return 8 * anglesOf(tile);
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
    return `${turnText('turnFour')} ${turnText('turnOne')} ${turnedEights[this.o.form]}
      var<workgroup> firstRow: array<vec2f, ${anglesOf(this.o)}>;`;
  }

  /** Before the first chunk, which begins at `at`: the turns of this lane's rows, and those of the chunk's first. */
  begin(): string {
    const { form, headDim, first, rows, lanes } = this.o;
    const step = Math.min(rows, lanes / this.across);
    const reversed = (x: string): string => `select(${x}, -${x}, uniforms.reverse == 1u)`;
    const four = (h: 'a' | 'b'): string => {
      const at = (e: number): string => `load_theta(thetas + angle + ${h === 'a' ? e : e + 4}u)`;
      const [c, s] = [`row0C${h}`, `row0S${h}`];
      const more = Array.from({ length: this.items - 1 }, (_, i) => i + 1).map(
        (i) => `
        let row${i}C${h} = row${i - 1}C${h} * step${h}.cosine - row${i - 1}S${h} * step${h}Sine;
        let row${i}S${h} = row${i - 1}S${h} * step${h}.cosine + row${i - 1}C${h} * step${h}Sine;`,
      );
      return `
        let theta${h} = vec4f(${[0, 1, 2, 3].map(at).join(', ')});
        let own${h} = turnFour(theta${h}, lane / ${this.across}u);
        let own${h}Sine = ${reversed(`own${h}.sine`)};
        ${
          form === 'concat'
            ? // a sine is the cosine a quarter of a turn before
              `let ${c} = select(own${h}.cosine, own${h}Sine, ofSine);
        let ${s} = select(own${h}Sine, -own${h}.cosine, ofSine);`
            : `let ${c} = own${h}.cosine;
        let ${s} = own${h}Sine;`
        }
        ${more.length > 0 ? `let step${h} = turnFour(theta${h}, ${step}u); let step${h}Sine = ${reversed(`step${h}.sine`)};` : ''}
        ${more.join('')}`;
    };
    return `
        let element = ${first} + lane % ${this.across}u * 8u;
        ${
          form === 'concat'
            ? `let thetas = head * ${headDim}u;
        let ofSine = element >= ${headDim}u;
        let angle = element % ${headDim}u;`
            : `let thetas = 0u;
        let angle = min(element, ${headDim - 8}u) / 2u;`
        }
        ${this.halves.map(four).join('\n')}
        let firstTheta = load_theta(thetas + min(lane, ${anglesOf(this.o) - 1}u));
        let onward = turnOne(firstTheta, ${rows}u);
        let onwardSine = ${reversed('onward.sine')};
        var chunksTurned = 0u;
        var firstWay = turnOne(firstTheta, ${this.position('at')});
        if (lane < ${anglesOf(this.o)}u) { firstRow[lane] = vec2f(firstWay.cosine, firstWay.sine); }
        workgroupBarrier();`;
  }

  private position(at: string): string {
    return `tokenAt(${at}, length) + uniforms.turnOffset`;
  }

  /**
   * The angles of the first row of the chunk behind this one, which begins at `next`. Barriers lie between this and both `turn`s.
   */
  onward(next: string): string {
    return `
          if (lane < ${anglesOf(this.o)}u) {
            chunksTurned += 1u;
            firstWay = OneTurn(
              firstWay.cosine * onward.cosine - firstWay.sine * onwardSine,
              firstWay.sine * onward.cosine + firstWay.cosine * onwardSine,
            );
            if (chunksTurned % ${anew}u == 0u) { firstWay = turnOne(firstTheta, ${this.position(next)}); }
            firstRow[lane] = vec2f(firstWay.cosine, firstWay.sine);
          }`;
  }

  /** At the head of a chunk: the factors of its items. */
  factors(): string {
    const items = Array.from({ length: this.items }, (_, i) => i);
    const way = (i: number): string =>
      this.o.form === 'concat'
        ? this.halves.map((h) => `let way${i}${h} = first${h}C * row${i}C${h} - first${h}S * row${i}S${h};`).join(' ')
        : `let way${i}a = firstaC * row${i}Ca - firstaS * row${i}Sa; let way${i}b = firstaS * row${i}Ca + firstaC * row${i}Sa;`;
    const load = (h: 'a' | 'b'): string => {
      const names = [0, 1, 2, 3].map((e) => `first${h}${e}`);
      return `
          ${names.map((name, e) => `let ${name} = firstRow[angle + ${h === 'a' ? e : e + 4}u];`).join(' ')}
          let first${h}C = vec4f(${names.map((name) => `${name}.x`).join(', ')});
          let first${h}S = vec4f(${names.map((name) => `${name}.y`).join(', ')});`;
    };
    return `${this.halves.map(load).join('')}
          ${items.map(way).join('\n')}`;
  }

  /** `held`, eight halves of item i, turned. */
  turned(held: string, i: number): string {
    return `${this.o.form === 'concat' ? 'concatEight' : 'rotatedEight'}(${held}, way${i}a, way${i}b)`;
  }
}

const turnedEights: Record<TurnForm, string> = {
  concat: `
      fn concatEight(x: vec4u, lower: vec4f, upper: vec4f) -> vec4u {
        return vec4u(fourOf(vec4f(bitcast<vec4<f16>>(x.xy)) * lower), fourOf(vec4f(bitcast<vec4<f16>>(x.zw)) * upper));
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
