"""The precision map as a picture: all layers of blocks, well-formed, nothing from elsewhere."""

import json
import re
from xml.etree import ElementTree

import pytest

from nvfp4.report.map_svg import precision_map_svg
from nvfp4.report.page_map import block_maps
from nvfp4.report.page_parts import layers_of
from nvfp4.report.page_style import PAGE_COLOURS
from support.conversions import convert_tiny

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    report = tmp_path_factory.mktemp("svg") / "r.json"
    convert_tiny(tiny, report.with_name("o.safetensors"), "--report", str(report), "--quiet")
    return json.loads(report.read_text(encoding="utf-8"))


def test_the_picture_has_every_layer_of_the_blocks(data):
    root = ElementTree.fromstring(precision_map_svg(data))
    (blocks,), outside = block_maps(layers_of(data))
    assert len(blocks.cells) == 80
    assert len(outside) == 6
    cells = [cell.get("class") for cell in root.iter(f"{SVG}rect") if " e" in cell.get("class", "")]
    # The legend has one for each look and for each shade.
    looks = {cell.split()[0] for cell in cells}
    assert len(cells) == len(blocks.cells) + len(looks) + 5
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {*blocks.kinds, *blocks.blocks, "blocks"} <= {*texts}
    assert texts[0] == "o.safetensors: 12.14 MB, 38 % of the source"
    counts = [int(found[1]) for text in texts if (found := re.search(r"(\d+) layers$", text))]
    assert sum(counts) == 86


def test_the_picture_is_for_light_pages_dark_pages_or_what_the_reader_prefers(data):
    light, dark, both = (precision_map_svg(data, scheme) for scheme in ("light", "dark", ""))
    assert "@media" not in light + dark
    ink = PAGE_COLOURS["ink"]
    assert [colour in light for colour in ink] == [True, False]
    assert [colour in dark for colour in ink] == [False, True]
    assert both.index(ink[0]) < both.index("@media") < both.index(ink[1])


def test_the_picture_needs_nothing_else(data):
    text = precision_map_svg(data).replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert {*re.findall(r'id="([^"]*)"', text)} >= {*re.findall(r"url\(#([^)]*)\)", text)}


def test_a_name_cannot_break_out_of_the_picture(data):
    data = data | {"output": "</title><script>alert(1)</script>"}
    root = ElementTree.fromstring(precision_map_svg(data))
    assert not [*root.iter(f"{SVG}script")]


def test_the_command_line_writes_the_picture(tiny, data, tmp_path):
    report = tmp_path / "map.svg"
    convert_tiny(tiny, tmp_path / "o.safetensors", "--report", str(report), "--quiet")
    assert report.read_text(encoding="utf-8") == precision_map_svg(data)


def test_many_blocks_have_narrow_cells_and_few_numbers(data):
    layer = next(tensor for tensor in layers_of(data) if "blocks.0." in tensor["name"])
    tensors = [
        layer | {"name": layer["name"].replace("blocks.0.", f"blocks.{number}.")}
        for number in range(600)
    ]
    root = ElementTree.fromstring(precision_map_svg(data | {"tensors": tensors}))
    widths = [float(cell.get("width")) for cell in root.iter(f"{SVG}rect")]
    assert len(widths) >= 600
    assert min(widths) > 0
    assert sum(text.text.isdigit() for text in root.iter(f"{SVG}text")) < 60


def test_a_dry_run_says_so(data):
    data = data | {"dry_run": True, "errors": {}}
    text = precision_map_svg(data)
    assert "o.safetensors: dry run, " in text
    assert "larger error" not in text
