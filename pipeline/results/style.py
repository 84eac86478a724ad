"""The style sheet of the report: screen and print, no font or file from elsewhere."""

STYLE = """
:root { --ink: #16202a; --soft: #55616d; --line: #d7dde3; --paper: #fff; --wash: #f3f5f7; --alert: #b3261e; --calm: #2b6777; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--wash); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 16px; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: 14px; margin: 0 0 6px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; }
a { color: #0b57a4; }
a:focus-visible, summary:focus-visible { outline: 3px solid #f2a900; outline-offset: 2px; }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 12px; top: 12px; background: #fff; padding: 8px 12px; z-index: 1; }
nav a { display: inline-block; min-width: 1.6em; padding: 1px 4px; }
nav a[aria-current] { font-weight: 700; color: var(--ink); text-decoration: none; }
.warning { background: #fff4d6; border-left: 5px solid #b57900; padding: 8px 14px; margin: 14px 0; font-weight: 600;
  max-width: none; }
.soft { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.mark { border-left: 4px solid #b57900; padding-left: 8px; font-size: 13px; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; padding: 0; list-style: none; }
.figures li { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px 16px; min-width: 120px; }
.figures b { display: block; font-size: 22px; line-height: 1.2; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; background: var(--paper); border: 1px solid var(--line); }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); vertical-align: middle; }
td { overflow-wrap: anywhere; }
th { font-size: 13px; color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.study { background: var(--paper); border: 1px solid var(--line); border-left: 6px solid var(--calm); border-radius: 8px;
  padding: 16px 20px; margin: 0 0 18px; }
.study.urgent { border-left-color: var(--alert); }
.title { display: flex; gap: 12px; align-items: baseline; justify-content: space-between; flex-wrap: wrap; }
.frame { border-top: 1px solid var(--line); margin-top: 12px; padding-top: 12px; display: grid; gap: 8px 20px;
  grid-template-columns: 250px minmax(0, 1fr); align-items: start; }
.frame > figure { grid-column: 2; }
.frame > .labels { grid-column: 1; grid-row: 1 / span 3; }
.label { display: grid; grid-template-columns: 1fr auto; gap: 0 10px; margin: 0 0 9px; }
.label span { overflow-wrap: anywhere; }
.bar { grid-column: 1 / -1; position: relative; height: 9px; background: #e3e8ed; border-radius: 5px; }
.bar i { display: block; height: 100%; background: var(--calm); border-radius: 5px; min-width: 2px; }
.found .bar i { background: var(--alert); }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.state { font-size: 12px; font-weight: 700; border-radius: 999px; padding: 1px 10px; white-space: nowrap; color: #fff;
  background: var(--alert); }
.state.uncertain { color: var(--ink); background: #fff; border: 1.5px dashed var(--ink); }
.state.negative { color: var(--ink); background: #e3e8ed; }
.state.normal { background: var(--calm); }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; border-radius: 4px; display: block; border: 1px solid #101010; }
details { margin-top: 12px; }
footer ul { max-width: 80ch; padding-left: 20px; }
summary { cursor: pointer; color: #0b57a4; }
footer { padding-bottom: 40px; }
@media screen and (max-width: 760px) { .frame { display: block; } .frame > * + * { margin-top: 10px; } }
@media print {
  @page { margin: 14mm; }
  body { background: #fff; font-size: 10.5pt; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  header, main, footer { max-width: none; padding: 0; }
  .frame, figure, tr, .figures { break-inside: avoid; }
  h2, h2 + .soft, .title, .title + .soft { break-after: avoid; }
  .study { padding: 10px 14px; }
  .frame { grid-template-columns: 170px minmax(0, 1fr); }
  details::details-content { content-visibility: visible; block-size: auto; }
  a { color: inherit; text-decoration: none; }
}
"""
