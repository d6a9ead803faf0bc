/** Colours of series beyond the chart's four, each at least 3:1 on light and on dark paper. */
export const SERIES_COLORS: readonly string[] = [
  '#3b7dd8',
  '#d1661c',
  '#149a78',
  '#a15fc4',
  '#c9548a',
  '#8a8420',
  '#3f93a8',
  '#c0504d',
  '#7a7f8a',
  '#6b8e3a',
];

/** The report's style sheet; colours of the page come from the chart's custom properties. */
export const REPORT_STYLE = `
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; max-width: 50rem; }
.quiet, figcaption p { color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; font-weight: 400; white-space: nowrap; }
thead th { color: var(--quiet); }
.number { text-align: right; }
.missed { color: #c0504d; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); gap: 2rem 2.5rem; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.25rem; }
.masks svg { border: 1px solid var(--rule); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; list-style: none; padding: 0; margin: .5rem 0 1rem; font-size: .9rem; }
.swatch { display: inline-block; width: 1.5rem; height: .25rem; vertical-align: middle; margin-right: .5rem; }
@media print { figure { break-inside: avoid; } }
`;
