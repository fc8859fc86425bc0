"""Render the report as one HTML page.

`render_html` takes the data of `data.report_data`, the same as --report's .json has, and makes a
page that needs no other file, no script and no network. The answer comes first: what came of it,
how large, how it is multiplied, what it needs. The rest is for who wants to know why. A
Content-Security-Policy forbids scripts, should a name from the source ever get past `escaped`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nvfp4.asking.answers import NOT_ASKED
from nvfp4.cards import CARDS
from nvfp4.errors import gigabytes, percentage
from nvfp4.notes import RANK_WORDS, Rank
from nvfp4.options import Options, options_of
from nvfp4.report.data import AS_IT_WAS
from nvfp4.report.lines import spent
from nvfp4.report.looks import LOOKS, OTHER_LOOK, look_of
from nvfp4.report.page_curve import html_curves
from nvfp4.report.page_layers import filter_rules, html_layers
from nvfp4.report.page_map import html_map
from nvfp4.report.page_parts import (
    chip,
    escaped,
    html_fold,
    html_list,
    html_section,
    html_stack,
    html_table,
    layer_look,
    layers_of,
)
from nvfp4.report.page_style import page_style
from nvfp4.report.usual import render_errors

# The policy lets no script and no foreign file in, should a name ever get past `escaped`.
PAGE_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""
# Ranks of what is told above the figures; the others stand below.
BAD_RANKS = ("error", "warning")
# How the kinds of multiply work are shown: {share of the work's data: (label of a look, words)}.
WORK_LOOKS = {
    "FP4": ("W4A4", "in 4 bits"),
    "INT8 or FP8": ("INT8", "in 8 bits"),
    "16-bit": ("16-bit", "in 16 bits"),
}


def html_facts(data: dict, layers: list[dict]) -> str:
    """Render size, speed, layers and what ComfyUI is needed, as large figures."""
    output, source, work = data["output_bytes"], data["source_bytes"], data["work"]
    quantised = sum("matmul" in one or one["stored_as"] == AS_IT_WAS for one in layers)
    facts = [
        (
            "Size",
            gigabytes(output),
            f"{percentage(output, source)} of the source's {gigabytes(source)}",
        ),
        ("Quantised", f"{quantised:,} of {len(layers):,}", "linear layers"),
    ]
    if work["comfyui"]:
        card = max(work["speed"], key=work["speed"].get)
        where = f"16-bit's, of the matmuls on {CARDS[card].series}, estimated"
        facts.append(("Speed", f"up to {work['speed'][card]:.1f}x", where))
        kitchen = f"with comfy-kitchen {work['comfy_kitchen']}" if work["comfy_kitchen"] else ""
        also = " and ".join(filter(None, (kitchen, work["needs"])))
        facts.append(("Needs", f"ComfyUI {work['comfyui']}", f"or newer{also and f', {also}'}"))
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{escaped(value)}<small>{escaped(more)}</small></dd></div>"
        for name, value, more in facts
    )
    return f'<dl class="facts">{tiles}</dl>\n'


def html_work(work: dict) -> str:
    """Render the share of the multiply work by bits, and estimated speeds on classes of cards."""
    if not work["comfyui"]:
        return "<p>Nothing is quantised.</p>\n"
    parts = [
        (LOOKS[label], percentage(work["shares"][name], 1), work["shares"][name])
        for name, (label, _) in WORK_LOOKS.items()
    ]
    items = "".join(
        f"<li>{chip(look, share)} {words}</li>"
        for (look, share, _), (_, words) in zip(parts, WORK_LOOKS.values(), strict=True)
    )
    speeds = (
        f"{CARDS[card].series} {speed:.1f}x ({card})" for card, speed in work["speed"].items()
    )
    # The newest class multiplies all formats.
    card = work["card"] or next(iter(CARDS))
    others = " Other cards do the 4-bit part in 16." if work["shares"]["FP4"] else ""
    return (
        f"<h2>Multiply work on {CARDS[card].series} ({card})</h2>\n{html_stack(parts)}"
        f'<ul class="legend">{items}</ul>\n'
        f'<p class="soft">Of the matmuls, in a typical run: {escaped(work["run"])}.{others} '
        f"Estimated speed of these layers over 16-bit, at most: {', '.join(speeds)}.</p>\n"
    )


def html_verdict(data: dict) -> str:
    """Render what came of it: a file that was checked, a plan, or that a run would fail."""
    if data["problems"]:
        return '<p class="verdict warn">&#10007; Dry run: a run would fail</p>\n'
    if data["dry_run"]:
        return '<p class="verdict warn">&#9675; Dry run: nothing was written</p>\n'
    return f'<p class="verdict good">&#10003; Checked: {escaped(data["checked"])}</p>\n'


def html_use(data: dict) -> str:
    """Render what to do with the file in ComfyUI, and whether errors are usual."""
    asked = data["comfyui"]["answer"] if data["comfyui"] else NOT_ASKED
    load = "" if data["problems"] else f"{data['load']['text']}. "
    text = f"<p><b>In ComfyUI:</b> {escaped(load + asked)}</p>\n"
    errors = render_errors(data["errors"], data["outliers"])
    if errors:
        text += f"<p><b>Errors:</b> {escaped(errors[0])}</p>\n"
    return text + html_list("Errors that stand out", map(escaped, errors[1:]))


def html_note(note: dict[str, str]) -> str:
    """Render a note behind the word of its rank."""
    word = RANK_WORDS.get(Rank.__members__.get(note["rank"].upper()), note["rank"])
    bad = ' class="warn"' if note["rank"] in BAD_RANKS else ""
    return f"{word and f'<b{bad}>{word}:</b> '}{escaped(note['text'])}"


def html_notes(notes: list[dict[str, str]]) -> str:
    """Render notes as a list, those that matter most first."""
    # Notes come sorted for a terminal, where the last line is the nearest one.
    ranked = sorted(notes, key=lambda note: -Rank.__members__.get(note["rank"].upper(), 9))
    return html_list("Notes", map(html_note, ranked))


def html_answer(data: dict, layers: list[dict]) -> str:
    """Render what a person wants to know first: what came of it, and what to do with it."""
    name, source = escaped(data["output"]), escaped(data["source"])
    took = f", in {spent(data['seconds'])}" if data["seconds"] else ""
    took += f" on {escaped(data['device'])}" if data["device"] else ""
    if data["dry_run"]:
        name, took = f"Dry run: {name}", ""
    told = [*data["notes"], *({"rank": "error", "text": text} for text in data["problems"])]
    bad = [note for note in told if note["rank"] in BAD_RANKS]
    return (
        f"<header>{html_verdict(data)}<h1>{name}</h1>\n"
        f'<p class="soft">from {source}{took}, by convert_nvfp4.py {escaped(data["version"])}</p>\n'
        f"{html_notes(bad)}{html_facts(data, layers)}{html_use(data)}{html_work(data['work'])}"
        f"{html_notes([note for note in told if note not in bad])}</header>\n"
    )


def html_stored(totals: dict[str, dict[str, int]]) -> str:
    """Render each precision's part of the bytes, as a bar over a folded table."""
    size = sum(total["bytes"] for total in totals.values()) or 1  # a file may hold no bytes
    bar = html_stack((look_of(name), name, total["bytes"] / size) for name, total in totals.items())
    rows = (
        (
            chip(look_of(name), name),
            *(f"{total[key]:,}" for key in ("layers", "tensors", "bytes")),
            percentage(total["bytes"], size),
        )
        for name, total in totals.items()
    )
    columns = ("Stored as", "#Layers", "#Tensors", "#Bytes", "#Share")
    return bar + html_fold("Bytes", html_table("Bytes per precision", columns, rows))


def html_matmuls(data: dict) -> str:
    """Render each matmul's part of the linear weights, as a bar over a folded table.

    Unquantised layers, which the data's `matmuls` leave out, are shown as W16A16, so that the bar
    is whole.
    """
    # Several formats may share a kind such as W8A8: it is shown as most of its layers are.
    kinds = Counter((one.get("matmul", "W16A16"), layer_look(one)) for one in layers_of(data))
    looks = {kind: look for (kind, look), _ in reversed(kinds.most_common())}
    parts = [(kind, found["layers"], found["share"]) for kind, found in data["matmuls"].items()]
    layers = sum(total["layers"] for total in data["totals"].values())
    if rest := layers - sum(count for _, count, _ in parts):
        parts.append(("W16A16", rest, 1 - sum(share for *_, share in parts)))
    parts = [(looks.get(kind, OTHER_LOOK), kind, count, share) for kind, count, share in parts]
    bar = html_stack((look, kind, share) for look, kind, _, share in parts)
    rows = (
        (chip(look, kind), f"{count:,}", percentage(share, 1)) for look, kind, count, share in parts
    )
    caption = "Matmuls, by share of the linear weights"
    return bar + html_fold("Matmuls", html_table(caption, ("Matmul", "#Layers", "#Share"), rows))


def html_totals(data: dict) -> str:
    """Render the section of bytes and matmuls, side by side where there is room."""
    stored, matmuls = html_stored(data["totals"]), html_matmuls(data)
    body = f'<div class="pair"><div>{stored}</div><div>{matmuls}</div></div>\n'
    return html_section("Size and matmuls", body)


def command_line(options: dict) -> Iterator[tuple[str, str]]:
    """Yield (option, value) as the command line has them, both escaped.

    `options` are those that the header records, by field name. A repeatable option yields a pair
    for each value, a switch "on".
    """
    rows = {row.name: row for row in options_of(Options)}
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            # A set of switches is recorded as the flags that were given; they have no value.
            pair = (one, True) if rows[name].switches else (rows[name].flag, one)
            yield escaped(pair[0]), "on" if pair[1] is True else escaped(pair[1])


def html_origin(origin: dict) -> str:
    """Render how the file was made: version, options, and the source's files with their sizes."""
    files = [(escaped(name), gigabytes(size)) for name, size in origin["sources"].items()]
    options = html_table("Options", ("Option", "Value"), command_line(origin["options"]))
    sources = html_table("Source files", ("File", "#Size"), files) if files else ""
    body = f'<div class="pair"><div>{options}</div><div>{sources}</div></div>'
    return html_section("How it was made", html_fold("Options and source files", body))


def render_html(data: dict) -> str:
    """Render the report's data (see `data.report_data`) as a self-contained HTML page.

    Layers are the 2-D tensors whose names end in `.weight`, quantised or not; biases and norms
    count in the totals only.
    """
    layers = layers_of(data)
    title = f"{escaped(data['output'])}: conversion report"
    if data["dry_run"]:
        title = f"Dry run: {escaped(data['output'])}, planned but not written"
    return (
        f"{PAGE_HEAD}<title>{title}</title>\n"
        f"<style>{page_style()}{filter_rules()}</style></head>\n<body><main>\n"
        f"{html_answer(data, layers)}{html_map(data)}{html_totals(data)}{html_curves(data)}"
        f"{html_layers(data)}{html_origin(data['origin'])}</main></body></html>\n"
    )
