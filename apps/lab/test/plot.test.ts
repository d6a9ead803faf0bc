import { parseHTML } from 'linkedom';
import { expect, test } from 'vitest';
import { lossPlot, type TrainingHistory } from '../src/plot.js';

function history(name: string, floor: number): TrainingHistory {
  const at = (step: number): { step: number; bits: number } => ({ step, bits: floor + 6 * Math.exp(-step / 200) });
  return { name, training: Array.from({ length: 300 }, (_, i) => at(10 * i)), heldOut: [250, 1500, 2990].map(at) };
}

test('each run has a line of batches, a line of held-out losses with dots, and a name with its last loss, highest first', () => {
  const svg = lossPlot([history('softmax', 1.75), history('zeta', 1.95)]);
  const { document } = parseHTML(svg);
  expect(
    [...document.querySelectorAll('g[aria-label=line] path')]
      .map((path) => path.getAttribute('d')?.length ?? 0)
      .every((length) => length > 20),
  ).toBe(true);
  expect(document.querySelectorAll('g[aria-label=line]')).toHaveLength(4);
  expect(document.querySelectorAll('g[aria-label=dot] circle')).toHaveLength(6);
  expect([...document.querySelectorAll('g[aria-label=text] text')].map((text) => text.textContent)).toEqual([
    'zeta 1.950',
    'softmax 1.750',
  ]);
  expect(svg).not.toMatch(/NaN|undefined|https?:\/\/(?!www\.w3\.org)/);
});

test('the file is XML of its own: namespace declared, names escaped in text and in attributes', () => {
  const svg = lossPlot([history('<script>"a" & b</script>', 1)]);
  expect(svg).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" /);
  expect(svg).not.toContain('<script>');
  expect(svg.match(/&(?!(lt|gt|amp|quot);)/)).toBeNull();
});

test('a run of one step can be drawn, a run of none cannot', () => {
  const none: TrainingHistory = { name: 'none', training: [], heldOut: [] };
  expect(lossPlot([{ ...none, training: [{ step: 0, bits: 8 }] }])).not.toContain('NaN');
  expect(() => lossPlot([none])).toThrow('no run has a point');
});
