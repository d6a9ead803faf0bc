import * as Plot from '@observablehq/plot';
import { chartColors, drawPlot, newSvgDocument, seriesStyle } from './chart.js';

/** A point of a loss curve. */
export interface LossPoint {
  readonly step: number;
  /** Bits a byte. */
  readonly bits: number;
}

/** The losses of one training run. */
export interface TrainingHistory {
  readonly name: string;
  /** Of each recorded batch. */
  readonly training: readonly LossPoint[];
  /** On the held-out text. */
  readonly heldOut: readonly LossPoint[];
}

const WIDTH = 860;
const HEIGHT = 460;

/**
 * Loss against step as one SVG file: thin lines for the batches (mean of a running window), thick ones with dots for the held-out
 * text; one colour and dash a run. It follows the reader's light or dark setting and needs no other file.
 * @throws RangeError when no run has a point
 */
export function lossPlot(runs: readonly TrainingHistory[]): string {
  if (runs.every((run) => run.training.length + run.heldOut.length === 0)) {
    throw new RangeError('plot: no run has a point; record a step first');
  }
  const document = newSvgDocument();
  const svg = drawPlot(
    document,
    {
      width: WIDTH,
      height: HEIGHT,
      marginRight: 24,
      grid: true,
      x: { label: 'step' },
      // The late, small differences matter; a linear axis gives its height to the first hundred steps.
      y: { label: 'bits a byte (log)', type: 'log', ticks: 10, tickFormat: '.2~f' },
      marks: [...runs.flatMap(marksOf), ...legend(runs)],
    },
    `Bits a byte against training step for ${runs.map(({ name }) => name).join(', ')}`,
  );
  const style = document.createElement('style');
  style.textContent = chartColors(runs.length);
  svg.prepend(style);
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  return svg.outerHTML + '\n';
}

function marksOf(run: TrainingHistory, index: number): Plot.Markish[] {
  const stroke = color(index);
  const window = Math.max(1, Math.round(run.training.length / 50));
  const smooth = Plot.windowY({ k: window, anchor: 'end' }, { x: 'step', y: 'bits', stroke, strokeWidth: 1, strokeOpacity: 0.6 });
  const title = ({ step, bits }: LossPoint): string => `${run.name}, held out, step ${step}: ${bits.toFixed(3)}`;
  return [
    Plot.line(run.training, smooth),
    Plot.line(run.heldOut, { x: 'step', y: 'bits', stroke, strokeWidth: 2.5, strokeDasharray: seriesStyle(index).dash }),
    Plot.dot(run.heldOut, { x: 'step', y: 'bits', fill: stroke, r: 3, title }),
  ];
}

/** Names with their last loss, in the order in which the lines end, highest first. */
function legend(runs: readonly TrainingHistory[]): Plot.Markish[] {
  return runs
    .map(({ name, training, heldOut }, index) => ({ name, index, last: (heldOut.at(-1) ?? training.at(-1))?.bits ?? 0 }))
    .sort((a, b) => b.last - a.last)
    .map(({ name, index, last }, row) =>
      Plot.text([`${name} ${last.toFixed(3)}`], {
        frameAnchor: 'top-right',
        dx: -6,
        dy: 8 + 17 * row,
        fill: color(index),
        fontSize: 13,
        fontWeight: 600,
      }),
    );
}

const color = (index: number): string => `var(--series-${index})`;
