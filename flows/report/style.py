"""The style sheet of the report: the fonts of the reader's system, light and dark, one column, no outside resources."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --panel: #f4f4f0; --ink: #1c1d20; --muted: #585c63; --rule: #dcdcd6;
  --blue: #1f5fbf; --orange: #a84a08; --green: #17733f; --violet: #7a3fa8; --grey: #8b9098;
  --blue-tint: #dde9fb; --orange-tint: #fbe6d4; --green-tint: #d9f0e1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --panel: #1f2227; --ink: #e8e8e4; --muted: #a5aab2; --rule: #353940;
    --blue: #82b1ff; --orange: #f2a663; --green: #74d19c; --violet: #cfa2f2; --grey: #8b9098;
    --blue-tint: #22375a; --orange-tint: #52341b; --green-tint: #1d4530;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; max-width: 50rem; padding: 2.5rem 1.25rem 5rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Ubuntu, sans-serif;
}
h1, h2, h3 { line-height: 1.25; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: 2.25rem; letter-spacing: -0.02em; }
h2 { font-size: 1.4rem; letter-spacing: -0.01em; padding-top: 2.75rem; margin-bottom: 0.75rem; }
h3 { font-size: 0.95rem; margin: 1.5rem 0 0.5rem; }
p { margin: 0.6rem 0; overflow-wrap: anywhere; }
a { color: var(--blue); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.86em; }
code { overflow-wrap: anywhere; unicode-bidi: isolate; }
pre {
  border-radius: 6px; padding: 0.8rem 1rem; margin: 0.6rem 0;
  overflow-x: auto; line-height: 1.5;
}
.lead { font-size: 1.15rem; color: var(--muted); max-width: 40rem; }
.note, figcaption, .small { color: var(--muted); font-size: 0.9rem; }
.warnings { border-left: 3px solid var(--orange); padding-left: 1rem; margin: 1.25rem 0; }
.warnings h2 { font-size: 1rem; padding: 0; margin: 0; } .warnings ul { margin: 0.3rem 0; padding-left: 1.1rem; }
.warnings li { overflow-wrap: anywhere; }
.kicker { color: var(--muted); font-size: 0.85rem; margin: 0 0 0.3rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding-top: 1rem; font-size: 0.92rem; }
.results {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)); gap: 0.75rem;
  margin: 1.75rem 0 0.75rem; padding: 0;
}
.results div { background: var(--panel); border-radius: 8px; padding: 0.9rem 1.1rem; }
.results dt { color: var(--muted); font-size: 0.88rem; overflow-wrap: anywhere; }
.results .value {
  margin: 0; font-size: 2rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums;
}
.results .before { margin: 0; color: var(--muted); font-size: 0.88rem; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
.scroll, pre {  /* a shadow at the side where there is more, which the content covers at its end */
  background:
    linear-gradient(to right, var(--cover) 30%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--cover) 30%, transparent) right / 2.5rem 100% no-repeat local,
    radial-gradient(farthest-side at 0 50%, var(--grey), transparent) left / 0.7rem 100% no-repeat scroll,
    radial-gradient(farthest-side at 100% 50%, var(--grey), transparent) right / 0.7rem 100% no-repeat scroll,
    var(--cover);
}
.scroll { --cover: var(--paper); } pre { --cover: var(--panel); }
table { border-collapse: collapse; min-width: min(100%, 26rem); font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 1rem 0.4rem 0; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.85rem; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 6rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td { min-width: 8rem; overflow-wrap: anywhere; } td.number { min-width: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 2rem; }
figure { margin: 0; min-width: 0; }
.figures > figure { max-width: 30rem; }
figcaption { margin-top: 0.3rem; }
.chart { display: block; width: 100%; max-width: 25rem; height: auto; color: var(--muted); font-size: 11px; }
.chart text { fill: currentColor; font-variant-numeric: tabular-nums; }
.chart .strong { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .band { fill: var(--panel); }
.chart .stroke { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.s1 { --series: var(--blue); } .s2 { --series: var(--orange); } .s3 { --series: var(--green); }
.s4 { --series: var(--violet); } .quiet { --series: var(--grey); }
.fill { fill: var(--series); } .stroke { stroke: var(--series); }
.key { display: inline-block; margin-right: 1rem; white-space: nowrap; }
.key i {
  display: inline-block; width: 1.1rem; height: 0; margin-right: 0.4rem; vertical-align: middle;
  border-top: 3px solid var(--series);
}
.key i.dotted { border-top-style: dotted; border-top-width: 4px; }
.tokens { list-style: none; display: flex; flex-wrap: wrap; gap: 0.35rem; margin: 0.5rem 0; padding: 0; }
.tokens li {
  background: var(--panel); border-radius: 4px; padding: 0.05rem 0.45rem; font-size: 0.9rem;
  max-width: 100%; overflow-wrap: anywhere;
}
.tokens .cut { color: var(--muted); padding: 0 0.1rem; }
.segment {
  border-left: 3px solid var(--series); padding-left: 0.9rem; margin: 0.75rem 0; line-height: 2.1;
  overflow-wrap: anywhere;
}
.segment b { color: var(--series); margin-right: 0.5rem; font-size: 0.85rem; font-weight: 600; }
.special { color: var(--muted); font-size: 0.8em; }
ruby {
  display: inline-flex; flex-direction: column; align-items: center; max-width: 100%; line-height: 1.35;
  border-radius: 3px; padding: 0.05rem 0.25rem;
}
rt { display: block; font-size: 0.75rem; line-height: 1.3; min-height: 1em; border-top: 1px solid var(--rule); }
ruby.mask, .sample.mask { background: var(--blue-tint); }
ruby.random, .sample.random { background: var(--orange-tint); }
ruby.kept, .sample.kept { background: var(--green-tint); }
.sample { border-radius: 3px; padding: 0.05rem 0.35rem; }
.label {
  display: inline-block; border: 1px solid var(--rule); border-radius: 99px; padding: 0 0.7rem;
  font-size: 0.85rem;
}
details { margin: 0.75rem 0; } summary { cursor: pointer; color: var(--blue); overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  body { padding: 1.5rem 1rem 3rem; }
  th, td { padding-right: 0.6rem; }
  .stacked table { min-width: 0; }
  .stacked thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stacked table, .stacked tbody, .stacked tr, .stacked th, .stacked td { display: block; }
  .stacked tr { border-bottom: 1px solid var(--rule); padding: 0.5rem 0; }
  .stacked tbody th, .stacked tbody td { border: 0; padding: 0.1rem 0; min-width: 0; text-align: left; }
  .stacked tbody th { font-weight: 600; white-space: normal; }
  .stacked tbody td { white-space: normal; }
  .stacked td:empty { display: none; }
  .stacked td[data-label]::before { content: attr(data-label) ": "; color: var(--muted); }
  h1 { font-size: 1.9rem; } h2 { padding-top: 2.25rem; } .lead { font-size: 1.05rem; }
}
@media print { nav { display: none; } section, figure { break-inside: avoid-page; } }
"""
