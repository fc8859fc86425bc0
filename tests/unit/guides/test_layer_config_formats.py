"""Layer configs: every written format by its words, and by what it is called in `comfy_quant`."""

import json
import re

import pytest

from nvfp4.conversion import convert
from nvfp4.formats.base import format_titled, written_formats
from nvfp4.guides.layer_config import as_setting, asked_format, setting_of
from nvfp4.options import Options

ASKED = {
    "NVFP4": [{"format": "nvfp4"}],
    "FP8": [{"format": "fp8"}, {"format": "float8_e4m3fn"}],
    "MXFP8": [{"format": "mxfp8"}],
    "INT8": [
        {"format": "int8"},
        {"format": "int8", "convrot": True},
        {"format": "int8_tensorwise", "convrot": True},
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
    ],
    "INT8 not rotated": [
        {"format": "int8_tensorwise"},
        {"format": "int8_tensorwise", "convrot": False},
    ],
    "W4A8": [
        {"format": "w4a8"},
        {"format": "asym_w4a8_int8"},
        {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 256, "bits": 4},
    ],
    "W6A8": [{"format": "w6a8"}, {"format": "asym_w4a8_int8", "bits": 6}],
}


@pytest.mark.parametrize("title", ASKED)
def test_formats_are_asked_for_by_word_or_by_name_and_options(title):
    row = format_titled(title)
    assert [asked_format(entry) for entry in ASKED[title]] == [row] * len(ASKED[title])
    # What a conversion writes of a layer asks for its format again, and so does the plan's name.
    config = row.configuration(full_precision=False)
    assert asked_format({**config, "bits": row.weight_bits}) is row
    assert asked_format({"format": setting_of(row)}) is row


def test_every_written_format_can_be_asked_for():
    assert {row.title for row in written_formats()} == ASKED.keys()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"format": "int8", "full_precision_matrix_mult": True}, "INT8 takes no full_precision_"),
        ({"format": "w4a8", "input_scale": 0.5}, "W4A8 takes no input_scale: ComfyUI measures"),
        ({"format": "mxfp8", "input_scale": 0.5}, "MXFP8 takes no input_scale"),
        ({"format": "nvfp4", "convrot": True}, 'nvfp4 is not written with {"convrot": true}'),
        ({"format": "int8", "convrot": False}, 'int8 is not written with {"convrot": false}'),
        ({"format": "int8", "bits": 4}, 'int8 is not written with {"bits": 4}'),
        ({"format": "w4a8", "bits": 6}, 'w4a8 is not written with {"bits": 6}'),
        (
            {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64},
            'int8_tensorwise is not written with {"convrot": true, "convrot_groupsize": 64}',
        ),
        ({"format": "bfloat16", "bits": 4}, 'bfloat16 is not written with {"bits": 4}'),
        ({"format": "convrot_w4a4"}, "format 'convrot_w4a4' is none of nvfp4, asym_w4a8_int8"),
        ({"format": "w4a8", "bits": "6"}, "bits '6' is no int"),
    ],
)
def test_what_a_format_does_not_take_is_one_line(entry, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        as_setting("blocks.0.a", entry)


def test_a_mark_that_says_no_goes_with_every_format():
    for row in written_formats():
        entry = {"format": setting_of(row), "full_precision_matrix_mult": False}
        assert as_setting("blocks.0.a", entry).precision is row


def test_plans_are_written_down_in_words_that_are_read_again(tiny, tmp_path):
    words = ["nvfp4", "fp8", "int8", "int8_tensorwise", "w4a8", "w6a8", "mxfp8", "16bit"]
    config = {f"blocks.3.self_attn.{name}": {"format": words[i]} for i, name in enumerate("qkvo")}
    config |= {
        f"blocks.4.self_attn.{name}": {"format": words[i + 4]} for i, name in enumerate("qkvo")
    }
    (tmp_path / "0.json").write_text(json.dumps(config))
    for turn in range(2):
        files = {
            "layer_config": tmp_path / f"{turn}.json",
            "layer_config_out": tmp_path / f"{turn + 1}.json",
        }
        places = {"source": tiny, "output": tmp_path / "o.safetensors"}
        report = convert(Options(**places, **files, dry_run=True, quiet=True))
        plans = {plan.ref.layer: plan for plan in report.plans}
        titles = [plans[layer].precision.title for layer in config]
        assert titles == [*("NVFP4", "FP8", "INT8", "INT8 not rotated"), "W4A8", "W6A8", "MXFP8",
                          "16-bit"]  # fmt: skip
    first, second = (json.loads((tmp_path / f"{turn}.json").read_text()) for turn in (1, 2))
    assert first == second
    assert first["blocks.4.self_attn.k"] == {"format": "w6a8"}
    assert first["blocks.3.self_attn.o"] == {"format": "int8_tensorwise"}
