/** Vectors of four channels in a row, blocks of channels padded to whole vectors. */
export interface RowLayout {
  /** Channels of a row. */
  dim: number;
  /** Channels a block; divides dim. */
  block: number;
  /** Vectors a block. */
  blockVectors: number;
  /** Vectors a row. */
  vectors: number;
  /** Vectors from row to row in workgroup memory: odd, so that equal columns of neighbouring rows lie in different banks. */
  stride: number;
}

export function rowLayout(dim: number, block: number = dim): RowLayout {
  const blockVectors = Math.ceil(block / 4);
  const vectors = (dim / block) * blockVectors;
  return { dim, block, blockVectors, vectors, stride: vectors | 1 };
}

/**
 * Tile of a kernel over pairs: `rows` rows stay, `others` rows pass by. Scores: lane (rg, kg) has rows rg + i * rowGroups and others
 * kg + j * otherGroups. Sums: lane (rb, c) has rows 4 rb .. 4 rb + 3 and vector c of `columns`.
 */
export interface PairTile {
  [name: string]: number;
  rows: number;
  others: number;
  lanes: number;
  /** Vectors of the sums' rows. */
  columns: number;
  /** Rows and others a lane scores. */
  laneRows: number;
  laneOthers: number;
}

/** What a kernel over pairs holds in workgroup memory, in vectors of 16 bytes. */
export interface PairMemory {
  /** Vectors a staying row. */
  perRow: number;
  /** Vectors a passing row. */
  perOther: number;
  /** Planes of weights, rows x others floats each. */
  planes: number;
  /** Further vectors a lane. */
  perLane?: number;
}

export interface PairProblem {
  columns: number;
  memory: PairMemory;
  /** Workgroup memory and lanes that a workgroup may take. */
  bytes: number;
  lanes: number;
  /** Scores a pair: a lane holds laneRows x laneOthers of each as vectors of four sums. */
  dots: number;
  /** Compilers of software devices take seconds for unrolled text: one or two pairs a lane. */
  software?: boolean;
}

/** Bytes of workgroup memory that a tile takes; 256 are left for scalars. */
export function pairBytes({ memory }: Pick<PairProblem, 'memory'>, tile: PairTile): number {
  const { perRow, perOther, planes, perLane = 0 } = memory;
  return 16 * (tile.rows * (perRow + 1) + tile.others * (perOther + 1) + tile.lanes * perLane) + 4 * planes * tile.rows * tile.others + 256;
}

/** All tiles of a problem that fit; pure. */
export function pairTiles(problem: PairProblem): PairTile[] {
  const { columns, bytes, lanes: most } = problem;
  const found: PairTile[] = [];
  for (let rows = 128; rows >= 4; rows /= 2) {
    const lanes = (rows / 4) * columns;
    if (lanes > most || (rows > 32 && lanes > 64)) continue;
    for (const laneRows of [4, 2, 1]) {
      if ((columns * laneRows) % 4 !== 0) continue;
      const otherGroups = (columns * laneRows) / 4;
      for (const laneOthers of [4, 2, 1]) {
        const tile = { rows, others: otherGroups * laneOthers, lanes, columns, laneRows, laneOthers };
        if (tile.others <= 64 && pairBytes(problem, tile) <= bytes) found.push(tile);
      }
    }
  }
  return found;
}

// Workgroup memory of a multiprocessor that Dawn's workgroups share on an H100: 24 KiB run two at a time, 16 three, 12 four.
const residentBytes = 50_000;

/**
 * The tile of a problem: lanes at work on a multiprocessor first (up to 256), then pairs a lane whose sums stay in registers (at most
 * 64 of them); undefined where none fits. Order of 90 measured tiles of the solver, headDim 16 to 128.
 */
export function planPairs(problem: PairProblem): PairTile | undefined {
  const worth = (t: PairTile): number => {
    const pairs = t.laneRows * t.laneOthers;
    if (problem.software) return 100 * Math.min(t.lanes, 64) - pairs;
    const resident = Math.min(256, Math.max(1, Math.floor(residentBytes / pairBytes(problem, t))) * t.lanes);
    const registers = 4 * pairs * problem.dots;
    // fewer than 8 passing rows a step: barriers and staging weigh more than what they leave room for
    const thin = t.others < 8 ? 100 : 0;
    return resident + (registers <= 64 ? 10 * Math.log2(pairs) : -registers) + (t.laneOthers > t.laneRows ? 4 : 0) - thin;
  };
  let best: PairTile | undefined;
  for (const tile of pairTiles(problem)) if (!best || worth(tile) > worth(best)) best = tile;
  return best;
}
