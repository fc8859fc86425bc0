"""Hold the style sheet of the report's page.

It is embedded into every page, so that a page is one file. Its first part is made from the rows of
`looks`: colours and patterns of cells, chips and bars. The rest is layout: light and dark, wide and
narrow, print and forced colours are all handled here.
"""

from __future__ import annotations

from collections.abc import Iterator

from nvfp4.report.looks import SHADES, Look, every_look

# Patterns are drawn in a look's line colour, as layers of CSS backgrounds. Where a cell has a
# number, it stands on a plate of the fill.
TEXTURES = {
    "plain": "",
    "dash": "linear-gradient(var(--line) 0 0) center / .6rem 2px no-repeat",
    "corner": "linear-gradient(225deg, var(--line) .35rem, transparent .4rem)",
    "rising": "repeating-linear-gradient(135deg, var(--line) 0 1px, transparent 1px .35rem)",
    "falling": "repeating-linear-gradient(45deg, var(--line) 0 1px, transparent 1px .35rem)",
    "crossed": "repeating-linear-gradient(135deg, var(--line) 0 1px, transparent 1px .4rem), "
    "repeating-linear-gradient(45deg, var(--line) 0 1px, transparent 1px .4rem)",
    "dots": "radial-gradient(var(--line) 1px, transparent 1.5px) 0 0 / .4rem .4rem",
    "sparse": "radial-gradient(var(--line) 1px, transparent 1.5px) 0 0 / .8rem .8rem",
    "level": "repeating-linear-gradient(0deg, transparent 0 .25rem, var(--line) .25rem "
    "calc(.25rem + 1px))",
    "upright": "repeating-linear-gradient(90deg, transparent 0 .25rem, var(--line) .25rem "
    "calc(.25rem + 1px))",
}
# Layout and colours of the page itself: (on a light page, on a dark one).
PAGE_COLOURS = {
    "page": ("#f4f6f8", "#10141a"),
    "card": ("#ffffff", "#181e26"),
    "ink": ("#17202b", "#e8edf3"),
    "soft": ("#4f5a68", "#a8b3c0"),
    "rule": ("#dde2e8", "#303a46"),
    "link": ("#0b57a4", "#8ec1ff"),
    "good": ("#116329", "#7fd892"),
    "warn": ("#9a3412", "#ffb38a"),
}


def look_rules(look: Look, scheme: str) -> Iterator[str]:
    """Yield the CSS rules of a look's colours for "light" or "dark", a fill for each shade."""
    colours = getattr(look.tint, scheme)
    yield f".{look.css} {{ --fill: {colours.strong}; --line: {colours.line}; }}"
    for step in range(SHADES):
        yield f".{look.css}.e{step} {{ --fill: {colours.shade(step)}; }}"


def scheme_rules(scheme: str) -> str:
    """Write the CSS rules of all colours for "light" or "dark"."""
    index = ("light", "dark").index(scheme)
    page = " ".join(f"--{name}: {pair[index]};" for name, pair in PAGE_COLOURS.items())
    looks = (rule for look in every_look() for rule in look_rules(look, scheme))
    return "\n".join([f":root {{ {page} }}", *looks])


def pattern_rules() -> str:
    """Write the CSS rules of all patterns."""
    rules = []
    for look in every_look():
        layers = ", ".join(filter(None, (TEXTURES[word] for word in look.pattern.split())))
        if layers:
            rules.append(f".{look.css} {{ --pattern: {layers}; }}")
    return "\n".join(rules)


# A cell's classes are its look and its shade. Its details float beside it where the browser can do
# that (anchor-scope), and lie at the screen's lower edge where it cannot, and on phones.
LAYOUT = """
* { box-sizing: border-box; --pattern: linear-gradient(transparent, transparent); }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 76rem; margin: auto; padding: 1.5rem 1rem 4rem; }
section, header { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem;
  padding: 1.25rem 1.5rem 1.5rem; margin-top: 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.2rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
p { margin: .25rem 0; } .soft { font-size: .9rem; }
.soft, caption, dt, thead, small { color: var(--soft); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.verdict { font-weight: 600; margin-bottom: .5rem; } .good { color: var(--good); }
.warn { color: var(--warn); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem;
  margin: 1rem 0; }
dd { margin: 0; } .facts dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
small { display: block; font-size: .85rem; font-weight: 400; } i { font-style: normal; }
.notes { padding: 0 0 0 1.2rem; margin: .5rem 0 0; }
header h2 { margin-top: 1.25rem; } .notes b { font-weight: 600; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; padding: 0;
  margin: .75rem 0 0; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; margin-top: .75rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
thead { font-size: .8rem; vertical-align: bottom; } th { font-weight: 500; text-align: left; }
td, th { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); }
:is(td, th):first-child { padding-left: 0; } :is(td, th):last-child { padding-right: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
.chip, .cell, .bar, :is(.stack, .scale) > * { color: var(--ink); print-color-adjust: exact;
  forced-color-adjust: none; }
.chip, .cell, .stack > * { background: var(--pattern), var(--fill); border-radius: .2rem;
  border: 1px solid var(--line); }
.chip, .stack > * { padding: .1rem .35rem; font-size: .8rem; white-space: nowrap; }
:is(.chip, .stack > *, .cell) span { background: var(--fill); padding: 0 .2rem;
  border-radius: .15rem; }
.bar { background: linear-gradient(var(--fill) 0 0) no-repeat 0 / var(--part); padding: 0 .4rem; }
.stack { display: flex; gap: 2px; margin-top: .75rem; height: 2rem; line-height: 1.6rem;
  text-align: center; }
.stack > * { min-width: 4px; overflow: hidden; padding: .1rem 0; }
summary { cursor: pointer; margin-top: 1rem; color: var(--link); }
.scroll { overflow-x: auto; }
.map { --head: 7.5rem; }
.map table { table-layout: fixed; border-collapse: separate; border-spacing: 2px;
  --cell: clamp(1.5rem, (min(100vw, 76rem) - var(--head) - 5.5rem) / var(--blocks), 6rem);
  width: calc(var(--head) + var(--columns) * var(--cell)); overflow-wrap: normal; }
.map :is(td, th) { padding: 0; border: 0; text-align: center; }
.map thead { font-size: .75rem; }
.map [scope=colgroup] { border-bottom: 1px solid var(--soft); }
.map :is([scope=row], .corner) { position: sticky; left: 0; z-index: 1; width: var(--head);
  background: var(--card); box-shadow: 0 0 0 2px var(--card); text-align: left; font-size: .75rem;
  line-height: 1.15; color: var(--soft); vertical-align: middle; overflow-wrap: anywhere; }
.map tr:has(.first) > * { padding-top: .5rem; }
.cell { line-height: 1.4rem; height: 1.5rem; font-size: .75rem; text-align: center;
  cursor: default; overflow: clip; } td > .cell { min-width: 4rem; }
.map td > .cell { min-width: 0; }
.cell:is(:hover, :focus) { outline: 2px solid var(--ink); overflow: visible; }
.cell:is(:hover, :focus) > .tip { display: block; }
.cell:focus > .tip { pointer-events: auto; } .cell:hover > .tip { z-index: 4; }
.tip { display: none; position: fixed; z-index: 3; inset: auto 0 0; max-height: 90vh;
  margin: .3rem; padding: .75rem 1rem; line-height: 1.5; text-align: left; overflow: auto;
  pointer-events: none; background: var(--card); border: 1px solid var(--soft);
  border-radius: .5rem; box-shadow: 0 .4rem 1.5rem #0006; font-size: .8rem; }
.tip dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .75rem; margin: .4rem 0 0; }
.fit { container-type: inline-size; position: relative; }
@container (max-width: 3.5rem) { .stack span { display: none; } }
@container (max-width: 3.4rem) { .cell .name { position: absolute; opacity: 0; } }
@container (max-width: 2.2rem) { .cell i { display: none; }
  .cell .fit span { font-size: .6rem; padding: 0; } }
.scale { display: inline-flex; gap: 1px; vertical-align: middle; }
.scale > * { width: 1rem; height: 1rem; background: var(--fill); border: 1px solid var(--line); }
fieldset { border: 1px solid var(--rule); border-radius: .5rem; margin: .75rem 0 0;
  padding: .5rem .75rem; display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; }
label { display: inline-flex; gap: .4rem; align-items: center; min-height: 1.5rem; }
.layers table { min-width: 48rem; overflow-wrap: normal; } td:has(> .bar) { width: 9rem; }
.curve { max-width: 30rem; width: 100%; height: auto; font-size: 11px; }
.curve text { fill: var(--soft); } .curve .axis { stroke: var(--soft); fill: none; }
.curve .line { stroke: var(--link); fill: none; stroke-width: 2; }
.curve .here { fill: var(--link); stroke: var(--card); stroke-width: 2; }
@media (min-width: 60em) {
  .pair { display: grid; grid-template-columns: 3fr 2fr; gap: 0 2.5rem; align-items: start; }
  .tip { width: max-content; max-width: 28rem; margin: .3rem auto; }
  @supports (anchor-scope: all) {
    .cell { anchor-name: --cell; anchor-scope: --cell; }
    .tip { position-anchor: --cell; position-area: bottom; position-try-fallbacks: flip-block;
      inset: auto; margin: .3rem; } } }
@media (max-width: 40em) {
  main { padding: .5rem .5rem 3rem; } section, header { padding: 1rem .75rem; }
  h1 { font-size: 1.35rem; } table { font-size: .8rem; } td, th { padding: .25rem; }
  .facts { grid-template-columns: 1fr 1fr; } .facts dd { font-size: 1.25rem; }
  .map { --head: 6rem; } }
@page { margin: 1.5cm; }
@media print {
  body { background: none; } main { max-width: none; padding: 0; }
  section, header { border: 0; padding: .5rem 0; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } .map, .curve, .stack { break-inside: avoid; }
  tr { break-inside: avoid; } fieldset { display: none; }
  details:not(.long)::details-content { content-visibility: visible; block-size: auto; } }
@media (forced-colors: active) { .cell, .chip { border-color: CanvasText; } }
"""


def page_style() -> str:
    """Write the whole style sheet."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {scheme_rules('dark')} }}"
    scheme = ":root { color-scheme: light dark; }"
    return "\n".join([scheme, scheme_rules("light"), dark, pattern_rules(), LAYOUT])
