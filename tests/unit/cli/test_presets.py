"""What --list-presets prints: a table to search, and one preset in full."""

import pytest

from nvfp4.cli.presets import MADE, fits, render_presets
from nvfp4.families import ENCODERS, FAMILIES, GENERAL_PRESETS, ROWS


def test_every_preset_has_a_line_that_fits_a_page():
    lines = render_presets().splitlines()
    table = lines[: lines.index("")]
    assert sorted(line.split()[0] for line in table[1:]) == sorted(ROWS)
    assert all(len(line) <= 100 for line in table)
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in GENERAL_PRESETS)


def test_the_table_gives_way_to_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr("nvfp4.cli.presets.stdout_width", lambda: 79)
    text = render_presets()
    assert max(map(len, text.splitlines())) <= 79
    # What has no room is counted.
    assert " +" in text


def test_every_row_says_what_it_makes_in_words_of_the_table():
    assert all({*row.makes} <= {*MADE} and row.makes for row in ROWS.values())


def test_what_a_row_keeps_is_told_in_a_few_words():
    told = {keep.what for row in ROWS.values() for keep in row.keeps}
    assert all(0 < len(what) <= 30 for what in told), told


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_is_shown_in_full_by_its_name(name):
    text, row = render_presets([name]), FAMILIES[name]
    assert text.startswith(f"{name}: {row.title}, in ")
    assert all(keep.layers in text and keep.why in text for keep in row.keeps)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["TI2V"], "wan: Wan, in "),  # a variant
        (["z", "image"], "z-image: Z-Image, in "),
        (["Z_Image"], "z-image: Z-Image, in "),
        (["qwen", "edit"], "qwen-image: Qwen-Image, in "),
        (["umt5"], "t5: T5, in "),  # a size
        (["smart"], "smart: any model by its structure"),
        (["fluxx"], "no preset is for fluxx; did you mean flux?"),
    ],
)
def test_words_find_a_preset_however_they_are_spelt(words, first):
    assert render_presets(words).lstrip().startswith(first)


def test_words_that_several_fit_leave_a_shorter_table():
    lines = render_presets(["image"]).splitlines()
    found = [line.split()[0] for line in lines[1 : lines.index("")]]
    # Those that make images first of all come first.
    assert sorted(found) == sorted(name for name, row in ROWS.items() if fits(["image"], name, row))
    assert {"flux", "qwen-image", "hunyuan-video"} <= {*found}
    assert "for any model" not in lines


def test_an_encoder_that_comfyui_loads_in_16_bits_alone_says_so():
    name = next(name for name, row in ENCODERS.items() if row.half_only)
    assert "\n  ComfyUI loads no quantised layer of it: it stays" in render_presets([name])
