import { Fragments, type KernelContext, range } from '@heed/core/~internal';
import { type Index, times, u32 } from './fragment-loops.js';
import { type GatedMatrixSpec, GatedPieces } from './gated-pieces.js';
import { eightsDeclared } from './held-tile.js';
import { initialOf, lengthOf, segmentOf, tokenOf, vectorStore, zeroTail } from './text.js';

export function gatedMatrixText(s: GatedMatrixSpec, { capabilities }: KernelContext): string {
  const packed = ['left', 'right', 'values', 'stage'];
  return new GatedMatrixText(s, new Fragments(capabilities, { N: s.fragmentColumns as 8 | 16, packed })).kernel();
}

// Workgroup memory, each part used several times a step:
//   left    Q, then the masked scores
//   right   K, then slices of the state as f16
//   values  V
//   stage   f32: the scores, then what the step adds to the state, then outputs
class GatedMatrixText extends GatedPieces {
  kernel(): string {
    const { s, f, channels, rows } = this;
    const gatedNames = rows ? ['q', 'k'] : ['v'];
    const fetch = `
          ${channels.fetchGates(s.gate, s.gatePairs)}
          ${gatedNames.map((name) => channels.fetch(name, s.pairs)).join('\n')}
          ${this.plain.map((tile) => tile.fetch()).join('\n')}`;
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      ${s.initial ? initialOf(s.keyDim, s.valueDim) : ''}
      var<workgroup> left: array<vec4u, ${this.gated.left}>;
      var<workgroup> right: array<vec4u, ${this.gated.right}>;
      var<workgroup> values: array<vec4u, ${this.gated.values}>;
      var<workgroup> stage: array<vec4u, ${this.gated.stage}>;
      var<workgroup> sums: array<vec4u, ${this.gated.sums}>;
      // of each channel: the sum that operands are relative to, the sum of the whole step
      var<workgroup> references: array<vec2f, ${this.gated.channels}>;
      var<workgroup> peaks: array<atomic<u32>, 8>;
      var<workgroup> vote: array<atomic<u32>, 4>;
      var<workgroup> taken: vec4u;
      ${this.norm?.workgroup ?? ''}
      fn powerOfTwo(exponent: i32) -> f32 { return bitcast<f32>(u32(exponent + 127) << 23u); }
      fn exponentOf(x: f32) -> i32 { return clamp(i32(bitcast<u32>(x) >> 23u) - 127, -30, 60); }
      ${eightsDeclared}
      ${vectorStore('out', s.outWidth, s.valueDim)}
      ${s.final ? vectorStore('state', s.valueDim % 4 === 0 ? 4 : 1, s.valueDim) : ''}
      ${f.entry(
        s.rowGroups * s.columnGroups,
        `
        let index = workgroupIndex(group, groups);
        if (index >= uniforms.workgroups) { return; }
        let position = segmentOf(index);
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let firstToken = position.z * uniforms.segmentTokens;
        let first = min(firstToken, length);
        let end = min(first + uniforms.segmentTokens, length);
        let rowGroup = subgroup / ${s.columnGroups}u;
        let ownColumns = subgroup % ${s.columnGroups}u * ${s.columns / s.columnGroups}u;
        let stateBase = ((batch * uniforms.heads + head) * uniforms.segments + position.z) * ${s.keyDim * s.valueDim}u;
        var turn = 0u;
        var outFactor = 1.0;
        var done = 0u;
        ${this.declareState()}
        var at = first;
        var count = 0u;
        var groupsTaken = 0u;
        ${channels.declare('rate', 'vec2f')}
        ${channels.declare('power', 'vec2f')}
        ${channels.declarePairs('before', 'whole')}
        ${this.norm?.declare(s.keyDim, s.initial) ?? ''}
        ${gatedNames.map((name) => channels.declare(`held_${name}`, 'u32')).join('\n')}
        ${this.plain.map((tile) => tile.declare()).join('\n')}
        ${f.hardware ? this.prologue(fetch) : ''}
        while (at < end) {
          ${this.step(fetch)}
        }
        ${this.wayOut()}
        ${s.final ? this.storeFinal() : ''}
        ${s.lengths ? zeroTail(s.columns, this.lanes) : ''}`,
        { lanesInOrder: true },
      )}`;
  }

  /** What a step finds of itself; the emulation takes a step of no tokens instead, so that its compiler meets each text once. */
  private prologue(fetch: string): string {
    return `
        count = min(${this.s.chunk}u, end - at);
        ${fetch}
        if (lane == 0u) { atomicStore(&vote[0], ${this.gated.subgroups}u); }
        ${this.channels.putSums('sums')}
        ${this.announceState()}
        ${this.announce()}
        workgroupBarrier();
        ${this.sums()}
        workgroupBarrier();
        if (lane == 0u) { taken = vec4u(atomicLoad(&vote[0])); }
        groupsTaken = workgroupUniformLoad(&taken).x;`;
  }

  private step(fetch: string): string {
    const { s, f, loops, layout, channels } = this;
    return `
          ${this.wayOut()}
          ${this.powers()}
          ${this.factors()}
          ${this.put()}
          workgroupBarrier();
          done = held;
          at += held;
          count = min(${s.chunk}u, end - at);
          ${fetch}
          if (lane == 0u) { atomicStore(&vote[0], ${this.gated.subgroups}u); }
          ${this.scores()}
          ${loops.declare('s', this.ownKeys)}
          ${this.addToState()}
          ${this.storeScores()}
          ${this.norm?.publish() ?? ''}
          workgroupBarrier();
          ${this.norm?.update() ?? ''}
          ${this.storeStateSlice(0)}
          ${this.mask()}
          ${loops.declare('o', this.ownTokens)}
          workgroupBarrier();
          ${this.eachSlice(
            (slice) => `
          ${this.fromSlice(slice)}
          ${this.storeSlice(slice)}
          ${slice === 0 ? `${channels.putSums('sums')} ${this.announce()}` : ''}
          workgroupBarrier();
          ${slice + 1 < s.slices ? this.storeStateSlice(slice + 1) : this.putScores()}
          ${this.addSlice(slice)}
          ${slice === 0 ? this.sums() : ''}
          workgroupBarrier();`,
          )}
          ${this.eachTokenBlock(
            (t) => `
            ${this.loadValues(t)}
            ${loops.each(
              0,
              this.ownTokens,
              (r) => `
              ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.scoreStride}u + ${u32(times(t, 2))}`, `${layout.scoreStride}u`)}
              ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `value${c}`))}`,
            )}`,
          )}
          ${this.stageOutputs()}
          ${this.announceState()}
          if (lane == 0u) { taken = vec4u(atomicLoad(&vote[0])); }
          groupsTaken = workgroupUniformLoad(&taken).x;`;
  }

  private storeScores(): string {
    const { s, f, scoreLoops: loops } = this;
    const { scoreFloatStride: stride } = this.layout;
    const place = (r: Index, c: number): string => {
      const own = `${this.tokenRow(r)} * ${stride}u + ownScores / 4u + ${(c * f.N) / 4}u`;
      return this.scoreGroups === s.columnGroups ? own : `select(${s.chunk * stride}u, ${own}, scoreGroup < ${this.scoreGroups}u)`;
    };
    return loops.each(0, this.ownTokens, (r) => loops.columnsOf((c) => f.store(loops.at('p', r, c), 'stage', place(r, c), `${stride}u`)));
  }

  /** Masked scores as f16, eights that a lane holds until their place is free. */
  private eachScoreItem(body: (score: string) => string): string {
    const across = this.s.chunk / 8;
    const total = this.s.chunk * across;
    const whole = this.scoreItems * this.lanes === total;
    return this.items.each(
      'n',
      this.scoreItems,
      (n) => `
            let item = lane + ${u32(n)} * ${this.lanes}u;
            ${whole ? '' : `if (item < ${total}u) {`}
            let i = item / ${across}u;
            let j = item % ${across}u * 8u;
            ${body(this.items.at('score', n))}
            ${whole ? '' : '}'}`,
    );
  }

  private get scoreItems(): number {
    return Math.ceil((this.s.chunk * this.s.chunk) / 8 / this.lanes);
  }

  private mask(): string {
    const { scoreFloatStride: stride } = this.layout;
    const four = (n: number): string => {
      const past = range(4).map((e) => `j + ${n + e}u <= i`);
      return `fourOf(select(vec4f(), bitcast<vec4f>(stage[i * ${stride}u + j / 4u + ${n / 4}u]) * down, vec4<bool>(${past.join(', ')})))`;
    };
    const score = `vec4u(${four(0)}, ${four(4)})`;
    if (!this.norm)
      return `
          ${this.items.declare('score', 'vec4u', this.scoreItems)}
          ${this.eachScoreItem((own) => `if (j <= i) { ${own} = ${score}; }`)}`;
    // every lane takes part in the sums of rows
    const across = this.s.chunk / 8;
    const total = this.s.chunk * across;
    const inside = this.scoreItems * this.lanes === total ? '' : `item < ${total}u && `;
    return `
          ${this.items.declare('score', 'vec4u', this.scoreItems)}
          ${this.items.each(
            'n',
            this.scoreItems,
            (n) => `
            let item = lane + ${u32(n)} * ${this.lanes}u;
            let i = item / ${across}u;
            let j = item % ${across}u * 8u;
            var part = 0.0;
            if (${inside}j <= i) { ${this.items.at('score', n)} = ${score}; part = sumOfEight(${this.items.at('score', n)}); }
            ${this.norm?.row(across, inside)}`,
          )}`;
  }

  private putScores(): string {
    return this.eachScoreItem((score) => `left[i * ${this.layout.scoreStride}u + j / 8u] = ${score};`);
  }

  /** out += Q S for a slice of the state. */
  private fromSlice(slice: number): string {
    const { f, loops, layout } = this;
    return loops.each(
      0,
      this.sliceRows / 16,
      (b) => `
              ${loops.columnsOf((c) => f.loadRight(`state${c}`, 'right', `${u32(times(b, 16 * layout.valueStride))} + ${this.column(c, 8)}`, `${layout.valueStride}u`))}
              ${loops.each(
                0,
                this.ownTokens,
                (r) => `
                ${f.loadLeft('part', 'left', `${this.tokenRow(r)} * ${layout.keyStride}u + ${this.stateRow(slice, b)} / 8u`, `${layout.keyStride}u`)}
                ${loops.columnsOf((c) => f.multiplyAdd(loops.at('o', r, c), 'part', `state${c}`))}`,
              )}`,
    );
  }
}
