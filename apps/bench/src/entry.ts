import type { Device, Tensor } from '@heed/core';

export type Suite = 'quick' | 'kernels' | 'masks' | 'scaling' | 'decode';
export type Pass = 'forward' | 'backward' | 'decode';

/** What a suite is made for. */
export interface Request {
  readonly suite: Suite;
  /** A software device: sizes that a processor manages. */
  readonly software: boolean;
  /** Token counts (or matrix edges) that replace the suite's own. */
  readonly sizes: readonly number[] | undefined;
}

/** Work that the definition asks for, whatever the kernel does: the least that any algorithm of that kind moves and computes. */
export interface Work {
  /** The algorithm that the floor supposes, in words: `q, k, v read once, out written once`. */
  readonly algorithm: string;
  /** Bytes that it moves. */
  readonly bytes: number;
  /** Operations that count, unmasked pairs only. */
  readonly flops: number;
  /** Where the operations run: on f16 matrix units, or in f32. Default by the dtype. */
  readonly units?: 'f16' | 'f32';
}

/** What memory a call should take, for the figure that was measured. */
export interface MemoryFormula {
  readonly bytes: number;
  readonly why: string;
}

/** What a mask hides, counted exactly. */
export interface MaskFigures {
  readonly name: string;
  /** Visible pairs of a head, its mean where heads differ. */
  readonly area: number;
  /** area / (queries x keys). */
  readonly density: number;
  /** Pairs of the listed tiles over the pairs of all tiles: what the kernel has to walk. */
  readonly listed: number;
}

/** Inputs in place, ready to run. */
export interface Opened {
  /**
   * Records the work once; what it returns is disposed of by the caller.
   * @param restart starts the clock again: for a backward pass, called between forward and backward
   */
  run(restart: () => void): readonly Tensor[];
  /** Reads sampled rows of what `run` gave; the function that it resolves to computes their error on the host, later. */
  sample(outputs: readonly Tensor[]): Promise<() => number>;
  dispose(): void;
}

/**
 * One thing that is measured: one id of a record.
 *
 * To add a technique: write `entries/<family>.ts` with a function `(request: Request) => Entry[]` that gives the entries of each
 * suite, and list it in `entries/index.ts`. `open` makes inputs with `input()` (seeded by name, so that peers have the same numbers),
 * `sample` holds rows of the output against plain float64 loops that make their inputs with `inputAt()`; keep these linear in tokens.
 */
export interface Entry {
  readonly id: string;
  readonly shape: Readonly<Record<string, number | string>>;
  readonly dtype: 'f16' | 'f32';
  readonly pass: Pass;
  readonly work: Work;
  readonly memory?: MemoryFormula;
  readonly mask?: MaskFigures;
  /** Largest error with which a time counts as a result; see `rowError`. */
  readonly tolerance: number;
  /** Series and abscissa in plots against length. */
  readonly series?: { readonly name: string; readonly tokens: number };
  open(device: Device): Opened;
}

/** A function that gives the entries of a family for a suite. */
export type Family = (request: Request) => readonly Entry[];
