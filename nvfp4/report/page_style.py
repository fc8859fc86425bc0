"""Hold the style sheet of the report's page.

It is embedded into every page, so that a page is one file. Classes are the names that `page` gives
its elements: formats and matmuls (`NVFP4`, `W4A16`), `chip`, `cell`, `tip`, `bar`, `stack`, `map`.
Light and dark, wide and narrow, print and forced colours are all handled by the rules here.
"""

from __future__ import annotations

# The classes of a cell tell how a weight is stored and how it is multiplied. Colours are for
# quantised layers and greys for the rest; a marked corner means full-precision matmul. Details
# float beside their cell where the browser supports it (anchor-scope), and lie at the screen's
# lower edge where it does not, and on phones.
PAGE_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #17202b; --soft: #56616f;
  --line: #dde2e8; --fill: #d98cbb; }
.NVFP4, .W4A4, .W4A16 { --fill: #a6cbf0; } .FP8, .W8A8, .W8A16 { --fill: #f7c877; }
.F16, .W16A16 { --fill: #d6dbe2; } .BF16 { --fill: #b9c3cf; } .F32 { --fill: #94a2b3; }
@media (prefers-color-scheme: dark) {
  :root { --page: #10141a; --card: #181e26; --ink: #e8edf3; --soft: #a3aebb; --line: #303a46;
    --fill: #94447c; }
  .NVFP4, .W4A4, .W4A16 { --fill: #1d5591; } .FP8, .W8A8, .W8A16 { --fill: #855306; }
  .F16, .W16A16 { --fill: #323b47; } .BF16 { --fill: #485462; } .F32 { --fill: #5d6a7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 72rem; margin: auto; padding: 2rem 1rem 4rem; }
header { padding: 0 1.5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.25rem 1.5rem 1.5rem; margin-top: 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.2rem; margin: 0; }
p { margin: .25rem 0; } p, caption, dt, thead, small, .notes { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; }
dd { margin: 0; } .facts dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
small { display: block; font-size: .85rem; font-weight: 400; } i { font-style: normal; }
.notes { padding-left: 1.2rem; margin: 1rem 0 0; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; padding: 0;
  margin: .75rem 0 0; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; margin-top: 1rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
thead { font-size: .8rem; vertical-align: bottom; } th { font-weight: 500; text-align: left; }
td, th { padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
:is(td, th):first-child { padding-left: 0; }
:is(td, th):last-child { padding-right: 0; }
:is(td, th):last-child, .pair :is(td, th):not(:first-child) { text-align: right; }
td:has(> .bar) { width: 40%; } td:has(> .bar) + td, .pair > :last-child td { white-space: nowrap; }
.chip, .cell, .bar, .stack > * { color: var(--ink); print-color-adjust: exact;
  forced-color-adjust: none; }
.chip, .cell, .stack > * { background-color: var(--fill); border-radius: .2rem; }
.W4A16, .W8A16 { background-image: linear-gradient(225deg, var(--ink) .24rem, transparent .28rem); }
.chip { padding: .1rem .5rem; font-size: .8rem; white-space: nowrap; }
.bar { background: linear-gradient(var(--fill) 0 0) no-repeat 0 / var(--part); padding: 0 .4rem; }
.stack { display: flex; gap: 2px; margin-top: 1rem; font: .8rem/1.9rem system-ui, sans-serif;
  height: 1.9rem; text-align: center; }
.stack > * { min-width: 2px; } summary { cursor: pointer; margin-top: 1rem; }
.map table { table-layout: fixed; border-collapse: separate; border-spacing: 2px; }
.map table :is(td, th) { padding: 0; border: 0; text-align: center; }
.map thead { position: sticky; top: 0; z-index: 1; }
.map thead th { background: var(--card); box-shadow: 0 0 0 2px var(--card); }
.map table [scope=colgroup] { border-bottom: 1px solid var(--line); }
.map :is([rowspan]:first-child, [scope=row]) { width: 2rem; color: var(--soft); }
.cell { line-height: 1.6rem; min-height: 1.6rem; min-width: 3.6rem; padding: 0 .1rem;
  font-size: .8rem; text-align: center; cursor: default; } .map .cell { min-width: 0; }
.cell:is(:hover, :focus) { outline: 2px solid; } .cell:is(:hover, :focus) > .tip { display: block; }
.cell:focus > .tip { pointer-events: auto; } .cell:hover > .tip { z-index: 3; }
.tip { display: none; position: fixed; z-index: 2; inset: auto 0 0; max-height: 90vh; margin: .3rem;
  padding: .75rem 1rem; line-height: 1.5; text-align: left; overflow: auto; pointer-events: none;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  box-shadow: 0 .4rem 1.5rem #0006; }
.tip dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .75rem; margin: .4rem 0 0; }
.fit { container-type: inline-size; }
@container (max-width: 3.2rem) { .long { writing-mode: vertical-rl; padding-bottom: .25rem; }
  .stack span { display: none; } }
@container (max-width: 2.3rem) { .cell i { display: none; } }
@container (max-width: 1.6rem) { .cell span { display: none; } }
@media (min-width: 60em) {
  .pair { display: grid; grid-template-columns: 3fr 2fr; gap: 0 2.5rem; align-items: start; }
  .tip { width: max-content; max-width: 28rem; margin: .3rem auto; }
  @supports (anchor-scope: all) {
    .cell { anchor-name: --cell; anchor-scope: --cell; }
    .tip { position-anchor: --cell; position-area: bottom; position-try-fallbacks: flip-block;
      inset: auto; margin: .3rem; } } }
@media (max-width: 60em) {
  .map { overflow-x: auto; } .map table { min-width: calc(var(--kinds) * 1.5rem + 2rem); } }
@media (max-width: 40em) {
  main { padding: 1.25rem .5rem; } section, header { padding: 1rem .75rem; }
  h1 { font-size: 1.35rem; } table { font-size: .8rem; } td, th { padding: .25rem; }
  .map thead, .cell { font-size: .7rem; } .map table { border-spacing: 1px; }
  td:has(> .bar) { width: 28%; } }
"""
