"""The share of the multiply work by format, and the estimate of speed, by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.compare.describe import work_of_side
from nvfp4.compare.entry import compare_models
from nvfp4.compare.sides import open_side
from nvfp4.conversion import convert
from nvfp4.formats.base import format_titled
from nvfp4.options import Options
from nvfp4.plan.multiply_work import work_by_weight
from nvfp4.report.data import report_data
from nvfp4.report.summary import render_report
from nvfp4.work import Multiplied, render_work, version_key, work_data, work_of
from support.make_families import read_headers
from support.make_golden import planned_for
from support.paths import FAMILIES

WAN_14B = read_headers(FAMILIES / "wan21_t2v_14b.txt")
VIDEO, TEXT, WIDTH, HIDDEN = 32760, 512, 5120, 13824


def test_wan_14b_by_hand():
    # In FP4 are q, k, o of self-attention and ffn.0 of the 36 inner blocks, in 8 bits v and ffn.2
    # (INT8) and cross-attention (W4A8): all of those blocks.
    work = planned_for(WAN_14B, []).work
    per_block = VIDEO * (6 * WIDTH**2 + 2 * WIDTH * HIDDEN) + TEXT * 2 * WIDTH**2
    beside = TEXT * (4096 + WIDTH) * WIDTH + VIDEO * 64 * WIDTH
    once = (256 + WIDTH + 6 * WIDTH) * WIDTH
    total = 40 * per_block + beside + once
    four = 36 * VIDEO * (3 * WIDTH**2 + WIDTH * HIDDEN) / total
    inner = 36 * per_block / total
    shares = {"FP4": four, "INT8 or FP8": inner - four, "16-bit": 1 - inner}
    assert work["shares"] == pytest.approx(shares, rel=1e-12)
    speed = 1 / (1 - inner + (inner - four) / 4 + four / 8)
    assert work["speed"]["blackwell"] == pytest.approx(speed)
    assert work["comfyui"] == "0.31"
    # FP8 without input scales is multiplied in 16-bit, and so is what is marked for that.
    older = planned_for(WAN_14B, ["--formats", "nvfp4,fp8,16bit"]).work
    assert older["shares"] == pytest.approx({"FP4": four, "INT8 or FP8": 0, "16-bit": 1 - four})
    assert older["speed"]["ada"] == older["speed"]["rdna"] == 1
    assert older["comfyui"] == "0.10"


def test_modulation_has_weights_and_no_work():
    # A third of Qwen-Image's linear weights are modulation, which runs once a step.
    data = report_data(planned_for(read_headers(FAMILIES / "qwen_image.txt"), []))
    assert data["matmuls"]["W8A8"]["share"] > 0.5
    assert data["work"]["shares"]["INT8 or FP8"] < 0.1


def test_work_by_weight():
    shares = work_by_weight(planned_for(WAN_14B, []).plans)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["blocks.0.ffn.0.weight"] == shares["blocks.9.ffn.2.weight"]
    self_k, cross_k = (shares[f"blocks.0.{kind}.k.weight"] for kind in ("self_attn", "cross_attn"))
    assert self_k / cross_k == pytest.approx(VIDEO / TEXT)
    assert len(shares) == 40 * 10 + 6


def test_speed_is_the_harmonic_sum():
    layers = [
        Multiplied("blocks.0.ffn.0", 100, "nvfp4", "0.10"),
        Multiplied("blocks.0.ffn.1", 200, "w4a8", "0.31"),
        Multiplied("blocks.0.ffn.2", 300, "fp8", "0.10"),
        Multiplied("blocks.0.ffn.3", 400),
    ]
    work = work_of(layers, "")
    assert (
        work.shares() == work.shares("blackwell") == {"FP4": 0.1, "INT8 or FP8": 0.5, "16-bit": 0.4}
    )
    # Shares are for the card as the speed is.
    assert work.shares("ada")["FP4"] == 0
    assert work.shares("ampere")["INT8 or FP8"] == 0.2
    assert work.shares("turing")["16-bit"] == 1
    assert work.speed("blackwell") == pytest.approx(1 / (0.1 / 8 + 0.2 / 4 + 0.3 / 2 + 0.4))
    # NVFP4 on Ada, FP8 too on Ampere, and W4A8 as well on Turing: as slow as 16-bit.
    bits16 = 165.2
    eight = 0.2 * bits16 / 660.6 + 0.3 * bits16 / 330.3
    assert work.speed("ada") == pytest.approx(1 / (0.1 + eight + 0.4))
    assert work.speed("ampere") == pytest.approx(1 / (0.2 / 4 + 0.8))
    assert work.speed("turing") == 1
    assert work.since == "0.31"
    assert work.kitchen == ""
    assert "CUDA 13" in work.needs(None)
    assert work.needs("turing") == ""
    assert "ROCm" in work.needs("rdna")


def test_versions_are_compared_as_numbers():
    assert max("0.9", "0.10", "", key=version_key) == "0.10"


def test_comfy_kitchen_is_told_where_it_has_to_be_newer():
    work = work_of([Multiplied("blocks.0.ffn.0", 100, "w6a8", "0.33", "0.2.40")], "")
    assert render_work(work_data(work, "rdna"))[2] == (
        "needs ComfyUI 0.33 with comfy-kitchen 0.2.40 or newer; for speed torch for ROCm, and "
        "comfy-kitchen 0.2.31 or newer"
    )


def test_nothing_quantised_says_nothing():
    data = work_data(work_of([Multiplied("blocks.0.ffn.0", 100)], ""))
    assert data["shares"]["16-bit"] == data["speed"]["blackwell"] == 1
    assert render_work(data) == render_work(None) == []
    assert work_data(work_of([], ""))["speed"]["ada"] == 1


@pytest.mark.parametrize(
    ("title", "shape", "marked", "word"),
    [
        ("NVFP4", (64, 64), False, "nvfp4"),
        ("NVFP4", (64, 64), True, "16bit"),
        # No FP4 matmul for 48 columns.
        ("NVFP4", (64, 48), False, "16bit"),
        ("FP8", (64, 64), False, "fp8"),
        ("FP8", (64, 64), True, "16bit"),
        ("scaled FP8", (64, 64), False, "fp8"),
        ("INT8", (64, 256), False, "int8"),
        ("INT8 not rotated", (64, 64), False, "int8"),
        ("W4A8", (64, 256), False, "w4a8"),
        ("W6A8", (64, 256), False, "w6a8"),
        ("MXFP8", (64, 64), False, "mxfp8"),
        ("16-bit", (64, 64), False, "16bit"),
        ("32-bit", (64, 64), False, "16bit"),
    ],
)
def test_what_a_layer_runs_as(title, shape, marked, word):
    assert format_titled(title).runs_as(shape, full_precision=marked) == word


def test_the_card_alone_is_told_where_one_is_given():
    text = render_report(planned_for(WAN_14B, ["--card", "blackwell"]))
    assert " of the multiply work in 4 bits, " in text
    assert " in 16 on GeForce RTX 50 (blackwell)\n" in text
    assert "at most: blackwell 3.7x (estimate)\n" in text
    assert "needs ComfyUI 0.31 or newer; for speed torch built for CUDA 13.0" in text


def test_conversion_and_comparison_agree(tiny, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    report = convert(Options(source=tiny, output=out, quiet=True))
    assert compare_models([str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["work"] == report.work
    assert compare_models([str(out)]) == 0
    assert f"  {render_work(report.work)[0]}\n" in capsys.readouterr().out


@pytest.mark.parametrize("stored", [(3, 128, 512), (3 * 128, 512)])
def test_a_bank_of_experts_counts_as_one(stored, tmp_path):
    config = {"format": "int8_tensorwise", "num_experts": 3}
    tensors = {
        "blocks.0.bank.weight": torch.ones(stored, dtype=torch.int8),
        "blocks.0.bank.weight_scale": torch.ones(*stored[:-1], 1),
        "blocks.0.bank.comfy_quant": torch.tensor([*json.dumps(config).encode()]).byte(),
        "blocks.0.other.weight": torch.ones(128, 512),
        "blocks.0.third.weight": torch.ones(128, 512),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    given = {"preset": "all", "exclude": ("other",), "quiet": True}
    out = tmp_path / "o.safetensors"
    report = convert(Options(source=tmp_path / "m.safetensors", output=out, **given))
    assert report.work["shares"] == pytest.approx(dict.fromkeys(report.work["shares"], 1 / 3))
    assert work_of_side(open_side(out)) == report.work
