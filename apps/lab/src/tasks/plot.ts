import * as Plot from '@observablehq/plot';
import { chartColors, drawPlot, newSvgDocument, seriesStyle } from '../chart.js';
import type { TaskResult } from './task.js';

interface Point {
  readonly family: string;
  readonly label: string;
  readonly bytes: number;
  readonly value: number;
}

/**
 * A metric of one cell against the bytes of a stream's state, as one SVG file: a line a mixer through its variants, the mean over seeds.
 * @throws RangeError when no result of the cell carries state bytes
 */
export function statePlot(results: readonly TaskResult[], cell: string): string {
  const points = pointsOf(results, cell);
  if (points.length === 0) throw new RangeError(`plot: no result of cell "${cell}" has stateBytes among its extra figures`);
  const families = [...new Set(points.map(({ family }) => family))];
  const document = newSvgDocument();
  const metric = results.find((one) => one.cell === cell)?.metric ?? 'accuracy';
  const color = (family: string): string => `var(--series-${families.indexOf(family)})`;
  const raised = raiseLabels(families.map((family) => lastOf(points, family)));
  const svg = drawPlot(
    document,
    {
      width: 860,
      height: 460,
      marginRight: 130,
      grid: true,
      x: { label: `bytes of state (log)`, type: 'log', tickFormat: '~s' },
      y: { label: `${metric}, ${cell}`, domain: [0, 1] },
      marks: families.flatMap((family) => {
        const own = points.filter((point) => point.family === family).sort((a, b) => a.bytes - b.bytes);
        const stroke = color(family);
        const title = ({ label, value, bytes }: Point): string => `${label}: ${value.toFixed(3)} at ${bytes.toLocaleString('en')} bytes`;
        return [
          Plot.line(own, { x: 'bytes', y: 'value', stroke, strokeDasharray: seriesStyle(families.indexOf(family)).dash }),
          Plot.dot(own, { x: 'bytes', y: 'value', fill: stroke, r: 3.5, title }),
          Plot.text(own.slice(-1), {
            x: 'bytes',
            y: 'value',
            text: 'family',
            dx: 8,
            dy: raised.get(family) ?? 0,
            textAnchor: 'start',
            fill: stroke,
            fontWeight: 600,
          }),
        ];
      }),
    },
    `${metric} of ${cell} against bytes of state for ${families.join(', ')}`,
  );
  const style = document.createElement('style');
  style.textContent = chartColors(families.length);
  svg.prepend(style);
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  return svg.outerHTML + '\n';
}

function lastOf(points: readonly Point[], family: string): Point {
  return points.filter((point) => point.family === family).reduce((most, point) => (point.bytes > most.bytes ? point : most));
}

/** Pixels by which the label of a family is moved down, so that labels of points that lie together stand below one another. */
function raiseLabels(points: readonly Point[]): Map<string, number> {
  const [near, far] = [Math.min(...points.map(({ bytes }) => bytes)), Math.max(...points.map(({ bytes }) => bytes))];
  const across = ({ bytes }: Point): number => (640 * Math.log(bytes / near)) / Math.max(1, Math.log(far / near));
  const placed: { x: number; y: number }[] = [];
  return new Map(
    [...points]
      .sort((a, b) => b.value - a.value)
      .map((point) => {
        const x = across(point);
        const at = 400 * (1 - point.value);
        let y = at;
        while (placed.some((other) => Math.abs(other.x - x) < 90 && Math.abs(other.y - y) < 14)) y += 2;
        placed.push({ x, y });
        return [point.family, y - at];
      }),
  );
}

function pointsOf(results: readonly TaskResult[], cell: string): Point[] {
  const groups = new Map<string, TaskResult[]>();
  for (const result of results) {
    const bytes = result.extra?.['stateBytes'];
    if (result.cell !== cell || typeof bytes !== 'number') continue;
    const key = `${result.mixer}|${bytes}`;
    groups.set(key, [...(groups.get(key) ?? []), result]);
  }
  return [...groups.values()].map((group) => {
    const [first] = group as [TaskResult, ...TaskResult[]];
    return {
      family: first.mixer.split(':')[0] ?? first.mixer,
      label: `${first.mixer} width ${String(first.extra?.['width'])}`,
      bytes: first.extra?.['stateBytes'] as number,
      value: group.reduce((sum, { value }) => sum + value, 0) / group.length,
    };
  });
}
