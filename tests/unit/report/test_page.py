"""The report as a page: nothing in a name can break out of it, and every figure is the data's."""

import itertools
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.errors import printable
from nvfp4.report.page import render_html
from nvfp4.report.page_map import block_maps
from nvfp4.report.page_parts import layers_of
from support.conversions import convert_tiny
from support.pages import Page


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """The data of a conversion with every part of the page but the curve of W4A4 shares."""
    folder = tmp_path_factory.mktemp("page")
    source = tiny / "diffusion_pytorch_model.safetensors.index.json"
    command = [str(source), str(folder / "o.safetensors"), "--quiet", "--target-size", "10MB"]
    assert main([*command, "--edge-blocks", "1", "--report", str(folder / "r.json")]) == 0
    return json.loads((folder / "r.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>\"'",
        "</style><img src=x onerror=alert(1)>",
        "a\u00e9\u5b57' onfocus=\"b",
        "&lt;",
    ],
)
def test_a_name_cannot_break_out_of_the_page(name, tmp_path):
    weights = {f"blocks.0.{name}.weight": torch.randn(32, 32), f"{name}.weight": torch.ones(4, 4)}
    save_file(weights, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--quiet"]
    report = tmp_path / "r.html"
    assert (
        main([*command, "--preset", "none", "--include", r"^blocks", "--report", str(report)]) == 0
    )
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.elements & {"script", "img"}
    assert not page.problems
    assert {cell["data-name"] for cell in page.cells} == {printable(name) for name in weights}
    assert "\x1b" not in text


def test_a_dry_run_has_a_page_without_errors_that_says_so(tiny, tmp_path):
    report = tmp_path / "r.html"
    convert_tiny(tiny, tmp_path / "o.safetensors", "--dry-run", "--report", str(report))
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.cells) == 86
    assert all("data-rmse" not in cell for cell in page.cells)
    assert ("title", "Dry run: o.safetensors, planned but not written") in page.headings
    assert ("h1", "Dry run: o.safetensors") in page.headings
    assert "no defect" not in text
    assert "nothing was written" in text
    assert "RMSE" not in text.partition("</style>")[2]


def test_the_page_is_well_formed_and_has_an_outline(data):
    page = Page(render_html(data))
    assert page.problems == []
    assert page.headings[0] == ("title", "o.safetensors: conversion report")
    levels = [int(tag[1]) for tag, _ in page.headings[1:]]
    assert levels[0] == levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    tags = dict(page.tags)
    assert tags["html"]["lang"] == "en"
    assert tags["svg"]["role"] == "img"
    assert tags["svg"]["aria-label"]
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len({*ids})
    headings = [values for tag, values in page.tags if tag == "th"]
    assert all("scope" in values for values in headings)


def test_the_tab_key_reaches_what_scrolls_folds_and_filters_and_passes_the_cells_by(data):
    page = Page(render_html(data))
    assert {cell["tabindex"] for cell in page.cells} == {"-1"}
    maps = [values for _, values in page.tags if "map" in values.get("class", "").split()]
    assert [(one["tabindex"], one["role"]) for one in maps] == [("0", "region")]
    assert maps[0]["aria-label"]
    stops = [tag for tag, values in page.tags if tag in ("summary", "input")]
    assert len(stops) < 20


def test_all_layers_appear_in_the_map_and_in_the_table(data):
    page, layers = Page(render_html(data)), layers_of(data)
    names = [layer["name"] for layer in layers]
    assert sorted(cell["data-name"] for cell in page.cells) == sorted(names)
    table = page.table("All linear layers, the largest error first")
    assert sorted(row[0] + ".weight" for row in table) == sorted(names)
    (blocks,), _ = block_maps(layers)
    assert page.table("blocks: 8 blocks")[0] == ["block", *blocks.blocks]
    assert blocks.runs() == [("edge", 1), ("", 6), ("edge", 1)]
    text = render_html(data)
    legend = re.search(r'class="legend">(?!.*class="legend").*', text, re.DOTALL)[0]
    counts = map(int, re.findall(r"(\d+) layers</li>", legend))
    assert sum(counts) == len(layers)


def test_every_figure_of_the_page_is_one_of_the_data(data):
    text = render_html(data).partition("</style>")[2]
    errors = [row["relative_rmse"] for row in data["tensors"] if "relative_rmse" in row]
    errors += [row[key] for row in data["tensors"] for key in ("output_before", "output_after")
               if row.get(key) is not None]  # fmt: skip
    errors += [point["error"] for point in data["size_curve"]] + [data["size_error"]]
    known = {f"{error:.{digits}f}" for error in errors for digits in (3, 4, 6)}
    shown = re.findall(r"(?<![\d.\"])0\.\d{3,}(?![\d\"])", re.sub(r"<[^>]*>", " ", text))
    assert len(shown) > len(errors)
    assert {*shown} <= known
    levels = {f"{row['sqnr_db']:.1f} dB" for row in data["tensors"] if row.get("sqnr_db")}
    assert {*re.findall(r"\d+\.\d dB", text)} == levels
    sizes = [f"{row['nbytes']:,}" for row in data["size_curve"]] + [f"{data['output_bytes']:,}"]
    marked = Page(text).table("Sizes and their mean errors")
    assert sorted(row[0] for row in marked) == sorted(sizes)
    assert [row[0] for row in marked if row[2]] == [f"{data['output_bytes']:,}"]
    for share in data["work"]["shares"].values():
        assert f"{100 * share:.0f} %" in text
    for speed in data["work"]["speed"].values():
        assert f" {speed:.1f}x (" in text
    assert f"ComfyUI {data['work']['comfyui']}<" in text
    for words in (data["load"]["text"], data["checked"], data["device"]):
        assert words in text


def test_the_map_prints_numbers_only_where_they_stand_out(data):
    def numbers(text):
        return re.findall(r"<span><i>0</i>(\.\d{3})</span>", text)

    assert data["outliers"] == []
    assert numbers(render_html(data)) == []
    tensors = [dict(tensor) for tensor in data["tensors"]]
    worst = next(tensor for tensor in tensors if "relative_rmse" in tensor)
    worst |= {"relative_rmse": 0.2345678, "output_after": None}
    layer = worst["name"].removesuffix(".weight")
    outlier = {"layer": layer, "format": "W4A8", "error": 0.2345678, "usual": 0.0661}
    text = render_html(data | {"tensors": tensors, "outliers": [outlier]})
    assert numbers(text) == [".235"]
    page = Page(text)
    cell = next(cell for cell in page.cells if cell["data-name"] == worst["name"])
    assert cell["class"].endswith(" e4")
    row = page.table("All linear layers, the largest error first")[0]
    assert [row[0], row[2]] == [layer, "0.2346 usual 0.066"]
    assert "1 of 62 layers stands out" in text
    assert 'id="unusual"' in text


def test_a_layer_rounded_by_statistics_is_shown_by_its_output(data):
    tensors = [dict(tensor) for tensor in data["tensors"]]
    for tensor in tensors:
        if "relative_rmse" in tensor:
            tensor |= {"output_before": 0.2, "output_after": 0.01, "output_w4a4": None}
    tensors[next(i for i, one in enumerate(tensors) if "sqnr_db" in one)]["output_after"] = 0.02
    page = Page(render_html(data | {"tensors": tensors}))
    shades = {cell["class"].split()[2] for cell in page.cells if "data-rmse" in cell}
    assert shades == {"e2", "e4"}
    assert "0.2000 -> 0.0200" in [
        row[4] for row in page.table("All linear layers, the largest error first")
    ]


def test_the_curve_of_w4a4_shares_is_shown(data):
    curve = [
        {"layer": "", "share": 1.0, "error": 1.0},
        {"layer": "blocks.3.<b>", "share": 0.61, "error": 0.27},
    ]
    page = Page(render_html(data | {"w4a4_curve": curve}))
    assert page.problems == []
    assert page.table("Shares and what is left of the error") == [
        ["100 %", "100 %", "-"],
        ["61 %", "27 %", "blocks.3.<b>"],
    ]


def test_notes_stand_behind_their_ranks_warnings_first(data):
    notes = [
        {"rank": "information", "text": "merely so"},
        {"rank": "note", "text": "a plain one"},
        {"rank": "warning", "text": "<b> is bad"},
    ]
    text = render_html(data | {"notes": notes})
    told = [item[0] for item in re.findall(r"<li>((<b|merely).*?)</li>", text)]
    assert told == [
        '<b class="warn">warning:</b> &lt;b&gt; is bad', "<b>note:</b> a plain one", "merely so",
    ]  # fmt: skip
    # What matters stands above the figures.
    assert text.index("is bad") < text.index('class="facts"') < text.index("a plain one")
    assert "no defect found" in text
    text = render_html(data | {"dry_run": True, "problems": ["no room"]})
    assert '<li><b class="warn">error:</b> no room</li>' in text
    assert "a run would fail" in text
    assert "no defect found" not in text
    assert "Load Diffusion Model" not in text
