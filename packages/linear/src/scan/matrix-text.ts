import { Fragments, type KernelContext } from '@heed/core/~internal';
import { chunkTiles } from './chunk-tiles.js';
import { eightsDeclared, type HeldTile } from './held-tile.js';
import { MatrixPieces, type MatrixSpec } from './matrix-pieces.js';
import { matrixLayout } from './matrix-tile.js';
import { outputText } from './output-text.js';
import type { TileTurns } from './tile-turns.js';
import type { TurnForm } from './turn-text.js';
import { aliveOf, equalSegments, lengthOf, ownPart, partOf, rateOf, segmentOf, shareOf, tokenOf } from './text.js';

/** What specialises the kernel with one decay a head. */
export interface ChunkSpec extends MatrixSpec {
  /** Operands turned by position as they are loaded: queries and keys, or values (the roles of a backward). */
  turned: 'none' | 'keys' | 'values';
  turnForm: TurnForm;
  /** Workgroups sweep the runs of a table, each from the tokens before it that still count (see ranges.ts). */
  ranges: boolean;
}

/** The whole text. */
export function matrixText(s: ChunkSpec, context: KernelContext): string {
  if (s.outputs) return outputText(s, context);
  const { stage } = matrixLayout(s.keyDim, s, false);
  const packed = ['right', 'values', ...(stage > 0 ? ['stage'] : [])];
  return new StatesText(s, new Fragments(context.capabilities, { N: s.fragmentColumns as 8 | 16, packed })).kernel();
}

// The sweep that only makes states: S <- lambda^C S + K^T V, in f32 fragments. Workgroup memory:
//   right   K scaled by its decay
//   values  V
//   stage   f32, where a state is no whole fragments: the state on its way out
class StatesText extends MatrixPieces {
  private readonly keys: HeldTile;
  private readonly values: HeldTile;
  private readonly turns: TileTurns | undefined;

  constructor(s: ChunkSpec, f: Fragments) {
    super(s, f);
    const { keys, values, turns } = chunkTiles(s, this.layout, this.lanes);
    this.keys = keys;
    this.values = values;
    this.turns = turns;
  }

  protected override get finalScale(): string {
    return 'finalScale';
  }

  kernel(): string {
    const { s, f, loops, layout, keys, values, turns } = this;
    const tiles = [keys, values];
    return `
      ${segmentOf}
      ${lengthOf(s.lengths)}
      ${tokenOf}
      ${aliveOf + shareOf}
      var<workgroup> right: array<vec4u, ${layout.right}>;
      var<workgroup> values: array<vec4u, ${layout.values}>;
      ${layout.stage > 0 ? `var<workgroup> stage: array<vec4u, ${layout.stage}>;` : ''}
      ${eightsDeclared}
      ${turns?.functions() ?? ''}
      ${f.entry(
        s.rowGroups * s.columnGroups,
        `
        let item = workgroupIndex(group, groups);
        if (item >= uniforms.workgroups) { return; }
        ${partOf}
        ${equalSegments}
        let columns = position.x * ${s.columns}u;
        let head = position.y;
        let batch = position.w;
        let length = lengthOf(batch);
        let first = min(firstToken, length);
        var end = min(lastToken, length);
        let rowGroup = subgroup / ${s.columnGroups}u;
        let ownColumns = subgroup % ${s.columnGroups}u * ${s.columns / s.columnGroups}u;
        let rate = ${rateOf('head')};
        let stateBase = (part * perPart / uniforms.columnTiles + (batch * uniforms.heads + head) * uniforms.segments + position.z) * ${s.keyDim * s.valueDim}u;
        ${loops.declare('s', this.ownKeys)}
        var at = first;
        ${ownPart}
        var count = min(${s.chunk}u, end - at);
        ${tiles.map((tile) => `${tile.declare()} ${tile.fetch()}`).join('\n')}
        ${turns?.begin() ?? ''}
        while (at < end) {
          let held = count;
          ${turns?.factors() ?? ''}
          ${tiles.map((tile) => tile.turn()).join(' ')}
          let whole = exp2(rate * f32(held));
          ${keys.put('exp2(rate * f32(max(i32(held + uniforms.reverse) - 1 - i32(r), 0))) * uniforms.keyScale')}
          ${values.put()}
          workgroupBarrier();
          at += held;
          count = min(${s.chunk}u, end - at);
          ${tiles.map((tile) => tile.fetch()).join('\n')}
          ${this.updateState()}
          workgroupBarrier();
        }
        ${this.storeFinal()}`,
        { lanesInOrder: true },
      )}`;
  }

  private updateState(): string {
    const { f, loops } = this;
    return `
          ${loops.each(0, this.ownKeys, (r) => loops.columnsOf((c) => f.scale(loops.at('s', r, c), 'whole')))}
          ${this.addToState()}`;
  }
}
