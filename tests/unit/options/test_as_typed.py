"""A conversion written as a command: typed again it is the same, and tells nothing of a machine."""

import shlex

import pytest

from nvfp4.cli.parse import parse_options
from nvfp4.options import Options
from nvfp4.options.as_typed import OF_ONE_RUN, typed_command, typed_size

LINES = [
    "",
    "--goal speed --card ada",
    "--goal quality --edge-blocks 3",
    "--recipe int8 --dtype float16",
    "--recipe scaled-fp8",
    "--preset none --include ffn --include 'a|b$' --exclude '`x` \"y\"'",
    "--gguf g.gguf --use-int8 --partial-guide --min-ffn-fp8 --min-ffn2-fp16",
    "--target-size 7500MB --fp4-share 0.5 --formats nvfp4,int8",
    "--merge-lora l.safetensors:0.75 --merge-lora m.safetensors --lora-partial",
    "--output-sharded --max-shard-size 4GiB --low-mem --scale-search amax",
    "--input-scale-value 0.0123456789012345 --full-precision-mm-cross-attn-qkvo",
]


def words_of(command):
    return shlex.split(command)[2:]


@pytest.mark.parametrize("line", LINES)
def test_typed_again_it_is_the_same(line):
    options = parse_options(["in.safetensors", "out.safetensors", *shlex.split(line)])
    again = parse_options(words_of(typed_command(options)))
    assert again == options
    assert again.recorded == options.recorded


@pytest.mark.parametrize("line", LINES[:5])
def test_it_has_what_was_typed_and_no_more(line):
    options = parse_options(["in.safetensors", "out.safetensors", *shlex.split(line)])
    typed = words_of(typed_command(options))
    assert sorted(typed) == sorted(["in.safetensors", "out.safetensors", *shlex.split(line)])


def test_it_tells_no_folder_and_nothing_of_one_run(tmp_path):
    folder = tmp_path / "secret folder"
    options = Options(
        source=folder / "in.safetensors",
        output=folder / "out.safetensors",
        merge_lora=[folder / "l.safetensors"],
        report=folder / "r.html",
        model_card=folder / "c.md",
        layer_config_out=folder / "c.json",
        comfyui=folder,
        make_folder=True,
        resume=True,
        device="cpu",
        quiet=True,
        json=True,
    )
    assert typed_command(options) == (
        "python convert_nvfp4.py in.safetensors out.safetensors --merge-lora l.safetensors"
    )
    assert {*Options.__dataclass_fields__} >= OF_ONE_RUN
    named = Options(source="..", output="o.safetensors")
    assert typed_command(named) == "python convert_nvfp4.py FOLDER o.safetensors"


def test_names_are_quoted_for_a_shell():
    options = Options(source="$(reboot) `x`\x1b\n.safetensors", output="o.safetensors")
    command = typed_command(options)
    assert command.isprintable()
    assert words_of(command)[0] == "$(reboot) `x`\\x1b\\n.safetensors"


def test_what_begins_with_a_dash_is_no_option():
    options = Options(source="-in.safetensors", output="out.safetensors", exclude="-x")
    assert words_of(typed_command(options)) == [
        "./-in.safetensors",
        "out.safetensors",
        "--exclude=-x",
    ]


def test_sizes_have_the_largest_unit_that_is_exact():
    sizes = [8 * 10**9, 7500 * 10**6, 4 << 30]
    assert [*map(typed_size, sizes)] == ["8GB", "7500MB", "4294967296"]
