/** The report's style sheet; colours come from the chart's custom properties. */
export const REPORT_STYLE = `
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; max-width: 46rem; }
.quiet, figcaption p, caption { color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: bottom; font-weight: 400; }
thead th { color: var(--quiet); font-size: .85rem; line-height: 1.25; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; padding: .35rem 0 .35rem 1.25rem; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
.wide svg { min-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; list-style: none; padding: 0; margin: .5rem 0 1rem; }
.legend svg, tbody th svg { vertical-align: middle; margin-right: .5rem; }
details { font-size: .85rem; }
summary { cursor: pointer; color: var(--quiet); }
blockquote { margin: 1rem 0; padding: .1rem 0 .1rem 1rem; border-left: 4px solid var(--rule); max-width: 46rem; white-space: pre-line; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { details { display: none; } figure { break-inside: avoid; } }
`;
