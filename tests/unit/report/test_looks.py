"""Ways of multiplying are told apart at a glance: by colour, by pattern, in both schemes."""

import itertools
import re

import pytest

from nvfp4.formats.base import readable_formats
from nvfp4.report.looks import LOOKS, OTHER_LOOK, SHADES, every_look, look_of, shade_step
from nvfp4.report.map_svg import TILES
from nvfp4.report.page_style import PAGE_COLOURS, TEXTURES, page_style
from support.colours import VISION, contrast, distance

SCHEMES = ("light", "dark")
# What a page usually has; the rest shares a colour with one of these and has a pattern of its own.
USUAL = ("W4A4", "W4A8", "W4A16", "INT8", "FP8", "16-bit")


def fills(look, scheme):
    return [getattr(look.tint, scheme).shade(step) for step in range(SHADES)]


def page_colour(name, scheme):
    return PAGE_COLOURS[name][SCHEMES.index(scheme)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("look", every_look(), ids=lambda look: look.label)
def test_text_and_marks_have_contrast(look, scheme):
    line = getattr(look.tint, scheme).line
    for fill in fills(look, scheme):
        assert contrast(page_colour("ink", scheme), fill) >= 4.5
        assert contrast(line, fill) >= 3
    assert contrast(line, page_colour("card", scheme)) >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["ink", "soft", "link", "good", "warn"])
def test_the_text_of_the_page_has_contrast(name, scheme):
    for behind in ("card", "page"):
        assert contrast(page_colour(name, scheme), page_colour(behind, scheme)) >= 4.5


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_usual_looks_are_told_apart_by_colour(scheme, vision):
    for one, other in itertools.combinations(USUAL, 2):
        colours = (getattr(LOOKS[label].tint, scheme).strong for label in (one, other))
        assert distance(*colours, vision) >= 0.04, (one, other)


def test_no_two_looks_are_told_apart_by_colour_alone():
    patterns = [look.pattern for look in every_look()]
    # What is not quantised is told from W4A4 by having no fill.
    assert [word for word in {*patterns} if patterns.count(word) > 1] == ["plain"]
    assert {look.label for look in every_look() if look.pattern == "plain"} == {"W4A4", "16-bit"}
    for scheme in SCHEMES:
        hollow, card = fills(LOOKS["16-bit"], scheme), page_colour("card", scheme)
        assert {*hollow} == {card}
        assert all(fill != card for fill in fills(LOOKS["W4A4"], scheme))


def test_every_pattern_is_drawn_on_the_page_and_in_the_picture():
    words = {word for look in every_look() for word in look.pattern.split()}
    assert words == {*TEXTURES}
    assert words - {"plain", "corner"} == {*TILES}


def test_a_larger_error_is_a_stronger_colour():
    assert [shade_step(error, 0.2) for error in (0, 0.04, 0.1, 0.2, 0.3)] == [0, 1, 2, 4, 4]
    assert shade_step(0, 0) == 0
    assert shade_step(None, 0.2) == 2
    for look, scheme in itertools.product(every_look(), SCHEMES):
        card = page_colour("card", scheme)
        far = [distance(fill, card) for fill in fills(look, scheme)]
        assert far == sorted(far)


def test_every_format_that_is_written_has_a_look():
    written = {row.kind for row in readable_formats() if row.option or row.encoding_cost}
    assert {"NVFP4", "FP8", "INT8", "W4A8"} <= written
    for kind in written:
        assert look_of(kind) is not OTHER_LOOK, kind
    assert look_of("NVFP4", "W4A16").label == "W4A16"
    assert look_of("FP8", "W8A16").label == "FP8 W8A16"
    assert look_of("FP8", "W8A8").label == "FP8"
    assert look_of("FP9") is OTHER_LOOK


def test_the_style_sheet_has_a_class_for_each_look():
    style = page_style()
    for look in every_look():
        assert re.fullmatch("[a-z][A-Za-z0-9-]*", look.css)
        for scheme in SCHEMES:
            assert f".{look.css}.e2 {{ --fill: {getattr(look.tint, scheme).shade(2)}; }}" in style
    assert style.count("{") == style.count("}")
