"""Edge blocks and families."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY
from nvfp4.plan.presets import edge_block_rules
from nvfp4.reasons import Why
from support.files import model_with


def test_edge_blocks_are_the_first_and_last_in_running_order():
    names = [f"double_blocks.{i}.x.weight" for i in range(3)]
    names += [f"single_blocks.{i}.x.weight" for i in range(12)]
    rules = edge_block_rules(model_with(names), ANY_FAMILY, 2)
    assert sorted(name for rule in rules for name in rule.names) == [
        "double_blocks.0.x.weight",
        "double_blocks.1.x.weight",
        "single_blocks.10.x.weight",
        "single_blocks.11.x.weight",
    ]


def test_edge_blocks_need_blocks():
    with pytest.raises(ConvertError, match=r"has no transformer blocks named blocks\.N"):
        edge_block_rules(model_with(["head.weight"]), ANY_FAMILY, 2)


NONE = ("--preset", "none", "--include", r"blocks\.", "--quiet")


@pytest.mark.parametrize(
    ("preset", "problem"),
    [
        ("auto", "m.safetensors: no family recognised: the source has no repeated blocks"),
        ("smart", "--preset smart: the source has no repeated blocks"),
        ("wan", "m.safetensors is of no known family; give --preset smart"),
    ],
)
def test_a_preset_that_does_not_suit_is_an_error(tmp_path, preset, problem):
    save_file({"x.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    with pytest.raises(ConvertError, match=problem):
        convert(parse_options([*command, "--preset", preset]))


def test_an_unknown_model_goes_by_smart_and_is_told_what_that_means(tmp_path):
    layers = ("attn.v", "attn.q", "mlp.fc1", "mlp.fc2")
    weights = {f"stages.{n}.{x}.weight": torch.randn(256, 256) for n in range(6) for x in layers}
    save_file(weights | {"head.weight": torch.randn(256, 256)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--dry-run"]
    report = convert(parse_options([*command, "--quiet"]))
    told = {plan.ref.layer: (plan.precision.title, str(plan.reason)) for plan in report.plans}
    assert told["stages.3.attn.q"] == ("NVFP4", "--preset smart")
    assert told["stages.3.attn.v"][0] == told["stages.3.mlp.fc2"][0] == "INT8"
    assert told["head"][0] == told["stages.1.attn.q"][0] == told["stages.4.attn.q"][0] == "16-bit"
    (note,) = (note for note in report.notes if note.startswith("no family recognised"))
    assert (
        "--preset smart goes by structure, and nobody measured this model: 16-bit outside " in note
    )
    assert "stages.N and in their first and last 2, 8-bit for attention V, QKV, down proj" in note
    assert note.endswith("; --comfyui DIR asks your ComfyUI which layers are linear")
    plain = convert(parse_options([*command, "--quiet", "--preset", "smart"]))
    assert [p.precision for p in plain.plans] == [p.precision for p in report.plans]


def test_another_familys_preset_is_an_error(tiny, tmp_path):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--preset", "flux"]
    with pytest.raises(
        ConvertError, match=r"--preset flux: .* is recognised as Wan; give --preset wan"
    ):
        convert(parse_options(command))


@pytest.mark.parametrize(
    ("count", "kept"), [("0", set()), ("1", {0, 7}), ("3", {0, 1, 2, 5, 6, 7})]
)
@pytest.mark.parametrize("by", ["preset", "gguf"])
def test_edge_blocks_are_as_many_as_asked_for(tiny, tmp_path, count, kept, by):
    source = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "6"]
    command = [str(tiny), str(tmp_path / "o.safetensors"), *(source if by == "gguf" else [])]
    plans = convert(parse_options([*command, "--edge-blocks", count, "--dry-run"])).plans
    edges = [plan.ref.name for plan in plans if plan.reason.kind is Why.EDGE_BLOCK]
    assert {int(name.split(".")[1]) for name in edges} == kept
    assert len(edges) == 10 * len(kept)
