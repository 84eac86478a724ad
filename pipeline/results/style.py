"""The style sheet of the report: screen, dark screen and print; no font or file from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --ink: #17222c; --soft: #52606c; --line: #dbe1e6; --paper: #fff; --wash: #f4f6f8;
  --alert: #b3261e; --calm: #2b6777; --unsure: #8a5a00; --link: #0b57a4; --bar: #e2e8ed; --note: #fff6df; --edge: #b57900;
  --on-solid: #fff; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6ebef; --soft: #a3b0bb; --line: #313b44; --paper: #1b2228;
  --wash: #12171b; --alert: #c93a30; --calm: #5aa5b8; --unsure: #e0aa45; --link: #86bdf3; --bar: #38434d; --note: #2e2817;
  --edge: #c69026; --on-solid: #fff; } .state.likely { color: #0d1418; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--wash); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header, main, footer, .optional, .end { max-width: 1280px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 30px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 38px 0 8px; letter-spacing: -0.005em; }
h3 { font-size: 16px; margin: 0; overflow-wrap: anywhere; flex: 1 1 300px; }
h4 { font-size: 13.5px; margin: 0 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 84ch; }
a { color: var(--link); text-underline-offset: 2px; }
a:focus-visible, summary:focus-visible { outline: 3px solid #f2a900; outline-offset: 2px; border-radius: 2px; }
time, .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 12px; top: 12px; background: var(--paper); padding: 8px 12px; z-index: 1; }
.run { color: var(--soft); margin: 2px 0 14px; max-width: none; }
.run b { color: var(--ink); }
.pages a { display: inline-block; min-width: 1.6em; padding: 1px 4px; }
.pages a[aria-current] { font-weight: 700; color: var(--ink); text-decoration: none; }
.warning { background: var(--note); border-left: 4px solid var(--edge); padding: 8px 14px; margin: 10px 0; font-weight: 600;
  max-width: none; border-radius: 0 6px 6px 0; }
.soft { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.mark { border-left: 4px solid var(--edge); padding: 1px 0 1px 12px; margin: 10px 0; font-size: 13.5px; }
.mark ul { margin: 4px 0; padding-left: 18px; }
.figures { display: flex; flex-wrap: wrap; gap: 1px; margin: 18px 0; padding: 0; list-style: none; background: var(--line);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.figures li { background: var(--paper); padding: 10px 16px; flex: 1 1 118px; font-size: 13px; color: var(--soft);
  line-height: 1.3; }
.figures b { display: block; font-size: 23px; font-weight: 600; line-height: 1.25; color: var(--ink);
  font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; background: var(--paper); border: 1px solid var(--line); }
th, td { text-align: left; padding: 7px 11px; border-bottom: 1px solid var(--line); vertical-align: middle; }
td { overflow-wrap: break-word; }
.worklist .of-study, .optional td:first-child { overflow-wrap: anywhere; }
th { font-size: 12.5px; color: var(--soft); font-weight: 600; }
.number { text-align: right; }
.worklist { font-size: 14px; }
.worklist td { line-height: 1.4; }
.worklist .of-rank { width: 44px; text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.worklist td.of-rank { border-left: 4px solid var(--line); }
.worklist .urgent .of-rank { border-left-color: var(--alert); }
.worklist .unsure .of-rank, .worklist .unknown .of-rank { border-left-color: var(--edge); }
.worklist .of-image { width: 72px; padding: 4px 0 4px 8px; }
.worklist .of-study { min-width: 190px; }
.worklist .of-patient, .worklist .of-examination { min-width: 130px; font-size: 13px; }
.worklist .of-result { min-width: 190px; }
.worklist .of-examination { min-width: 150px; }
.worklist .of-notes { width: 200px; font-size: 13px; }
.worklist .of-scored { width: 172px; font-size: 13px; color: var(--soft); }
.worklist tr:target td { background: var(--note); }
.when b { font-size: 11.5px; font-weight: 700; color: var(--on-solid); background: var(--calm); border-radius: 4px;
  padding: 0 6px; margin-left: 2px; }
.thumbnail { display: block; width: auto; height: auto; max-width: 56px; max-height: 40px; border-radius: 3px; }
.study { background: var(--paper); }
section.study { border: 1px solid var(--line); border-left: 5px solid var(--calm); border-radius: 8px; padding: 14px 20px 18px;
  margin: 0 0 18px; scroll-margin-top: 10px; }
section.urgent { border-left-color: var(--alert); }
section.unsure, section.unknown { border-left-color: var(--edge); }
section.study:target { outline: 2px solid var(--link); outline-offset: -1px; }
.title > div { display: flex; gap: 4px 14px; align-items: baseline; flex-wrap: wrap; }
.patient { flex-basis: 100%; font-size: 13.5px; }
.ways { font-size: 13px; display: flex; gap: 14px; white-space: nowrap; margin-left: auto; }
.frame { border-top: 1px solid var(--line); margin-top: 14px; padding-top: 14px; display: grid; gap: 10px 22px;
  grid-template-columns: 250px minmax(0, 1fr); align-items: start; }
.frame > figure { grid-column: 2; }
.frame > .labels { grid-column: 1; grid-row: 1 / span 3; }
.label { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 8px; margin: 0 0 11px; align-items: baseline; }
.label span { overflow-wrap: anywhere; }
.bar { grid-column: 1 / -1; position: relative; height: 8px; background: var(--bar); border-radius: 4px; }
.bar i { display: block; height: 100%; background: var(--calm); border-radius: 4px; min-width: 2px; }
.found .bar i { background: var(--alert); }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.state { font-size: 12px; font-weight: 700; border-radius: 999px; padding: 1px 9px; white-space: nowrap; line-height: 1.5;
  border: 1.5px solid transparent; color: var(--ink); background: var(--bar); }
.state.positive { color: var(--on-solid); background: var(--alert); }
.state.uncertain, .state.unknown { background: transparent; border: 1.5px dashed var(--unsure); color: var(--unsure); }
.state.likely { color: var(--on-solid); background: var(--calm); }
figure { margin: 0; }
.heatmap > svg { max-width: 100%; height: auto; margin-top: 4px; border-radius: 4px; display: block; }
.heatmap > span { font-size: 13px; color: var(--soft); margin-right: 8px; }
.heatmap > label { font-size: 13px; margin: 0 10px 0 3px; }
.heatmap > input { margin: 0; vertical-align: -2px; }
.heatmap > input:focus-visible { outline: 3px solid #f2a900; outline-offset: 2px; }
.cover { opacity: 0; }
.faint:checked ~ svg .cover { opacity: 0.65; }
.off:checked ~ svg .cover { opacity: 1; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--link); }
.optional summary h2 { display: inline; color: var(--ink); margin-right: 8px; }
footer h3 { margin-top: 18px; }
footer ul { max-width: 84ch; padding-left: 20px; }
.end { padding-top: 24px; padding-bottom: 40px; font-weight: 600; max-width: 1240px; }
@media screen and (max-width: 900px) {
  header, main, footer, .optional, .end { padding-left: 14px; padding-right: 14px; }
  .frame { display: block; }
  .frame > * + * { margin-top: 10px; }
  .worklist, .worklist tbody { display: block; }
  .worklist thead { display: none; }
  .worklist tr { display: grid; grid-template-columns: 30px 60px minmax(0, 1fr); gap: 2px 10px; padding: 9px 12px 9px 0;
    border-bottom: 1px solid var(--line); border-left: 4px solid var(--line); }
  .worklist tr.urgent { border-left-color: var(--alert); }
  .worklist tr.unsure, .worklist tr.unknown { border-left-color: var(--edge); }
  .worklist td[class] { display: block; border: 0; padding: 0; min-width: 0; width: auto; grid-column: 3; order: 3; }
  .worklist td.of-study { order: 1; }
  .worklist td.of-result { order: 2; }
  .worklist td[class]:empty { display: none; }
  .worklist td.of-rank { grid-column: 1; grid-row: 1 / span 6; order: 0; }
  .worklist td.of-image { grid-column: 2; grid-row: 1 / span 6; order: 0; }
  table:not(.worklist) { display: block; overflow-x: auto; }
  .ways { margin-left: 0; flex-basis: 100%; }
}
@media print {
  @page { size: A4; margin: 16mm 13mm 15mm;
    @top-left { content: "octray report"; font: 8pt system-ui, sans-serif; color: #52606c; }
    @top-right { content: "Not a medical device; not for diagnosis"; font: 8pt system-ui, sans-serif; color: #52606c; }
    @bottom-right { content: "Page " counter(page) " of " counter(pages); font: 8pt system-ui, sans-serif; color: #52606c; } }
  :root { color-scheme: light; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { background: #fff; font-size: 8.5pt; line-height: 1.35; }
  header, main, footer, .optional, .end { max-width: none; padding: 0; }
  header { padding-top: 0; }
  h1 { font-size: 16pt; } h2 { font-size: 12pt; margin-top: 14px; } h3 { font-size: 9.5pt; }
  h4 { font-size: 8pt; margin-bottom: 4px; }
  .soft, .mark, .patient, .worklist td, th { font-size: 7.5pt; }
  p { margin: 3px 0; } .mark { margin: 5px 0; padding-left: 8px; } .label { margin-bottom: 6px; }
  a { color: inherit; text-decoration: none; }
  .ways, .skip, .pages, .optional summary, .optional:not([open]) { display: none; }
  .figures { margin: 10px 0; } .figures li { padding: 5px 9px; flex-basis: 80px; font-size: 7.5pt; }
  .figures b { font-size: 12pt; }
  .frame, figure, tr, .figures, .mark, .label, .warning, li { break-inside: avoid; }
  h2, h2 + .soft, h3, h4 { break-after: avoid; }
  th, td { padding: 3px 5px; }
  footer table { font-size: 7pt; }
  .worklist td[class], .worklist th[class] { font-size: 7.5pt; min-width: 0; width: auto; line-height: 1.3; }
  .worklist td.of-study { min-width: 30mm; } .worklist td.of-patient, .worklist td.of-examination { min-width: 32mm; }
  .worklist td.of-result { min-width: 27mm; } .worklist td.of-image { width: 14mm; }
  .worklist time { white-space: normal; } .thumbnail { max-width: 12mm; max-height: 9mm; }
  .state { font-size: 6.5pt; padding: 0 5px; }
  section.study { display: table; width: 100%; border-width: 0 0 0 3px; border-radius: 0; padding: 0; margin: 0 0 4mm; }
  section.study > .title { display: table-header-group; break-inside: avoid; break-after: avoid; }
  section.study > .title > div { padding: 1mm 0 1.5mm 4mm; border-bottom: 0.6pt solid var(--line); }
  section.study > .body { display: table-row-group; }
  section.study > .body > * { margin-left: 4mm; }
  .body > p, .body > .mark { break-after: avoid; break-inside: avoid; }
  .frame { grid-template-columns: 46mm minmax(0, 1fr); gap: 2mm 5mm; margin-top: 2mm; padding-top: 2mm; }
  .frame .heatmap > svg { max-height: 50mm; width: auto; margin: 0; }
  .heatmap > span, .heatmap > input, .heatmap > label { display: none; }
  details:not(.optional)::details-content { content-visibility: visible; block-size: auto; }
  details:not(.optional) summary { color: var(--soft); list-style: none; }
  .optional { break-before: page; }
}
"""
