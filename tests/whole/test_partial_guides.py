"""A guide of a relative, or a part of one, is refused before anything is written."""

import json
import math

import pytest
import torch
from make_wan import wan_q5_k_m, wan_shapes, write_gguf
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.files import header_only

BY_GGUF = ("--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--gguf-keep-edge-blocks-fp16")
ROWS = [f"blocks.{block}.{layer}" for block in range(12) for layer in ("self_attn.q", "ffn.0")]


@pytest.fixture
def run(tmp_path, capsys):
    """Plan a tiny Wan of 12 blocks with these options: the status, what was printed, and stderr."""
    shapes = wan_shapes("tiny", 12)
    source = tmp_path / "m.safetensors"
    header_only(source, {name: ("BF16", shape) for name, shape in shapes.items()}, {})

    def run(*options):
        out = tmp_path / "o.safetensors"
        status = c.main([str(source), str(out), "--dry-run", "--quiet", *map(str, options)])
        assert not out.exists()
        return status, *capsys.readouterr()

    return run


def gguf_of(path, blocks, rename=lambda name: name):
    shapes = {rename(name): shape for name, shape in wan_shapes("tiny", blocks).items()}
    write_gguf(
        path, shapes, lambda name, shape: wan_q5_k_m(name.replace("layers.", "blocks."), shape)
    )
    return "--gguf", path, *BY_GGUF


def summary_of(path, blocks):
    rows = [row for row in ROWS if int(row.split(".")[1]) in blocks]
    layers = [{"layer": row, "scale_p99_9": 0.01, "amax_p99_9": 26.88} for row in rows]
    path.write_text(json.dumps({"layers": layers}))
    return "--preset", "wan", "--input-scale-summary-json", path


@pytest.mark.parametrize(
    ("blocks", "rename", "message"),
    [
        (9, str, "it has nothing for whole blocks: blocks.10, blocks.11, blocks.9;"),
        (14, str, "whole blocks of it are not in the source: blocks.12, blocks.13;"),
        (12, lambda name: name.replace("blocks.", "layers."), "layers.0, layers.1, layers.10 and"),
    ],
    ids=["fewer blocks", "more blocks", "blocks of another name"],
)
def test_a_gguf_of_a_relative(tmp_path, run, blocks, rename, message):
    guide = gguf_of(tmp_path / "g.gguf", blocks, rename)
    status, _, error = run(*guide)
    assert status == 1
    assert f"g.gguf: is of another model, or only a part: {message}" in error or message in error
    assert error.count("\n") == 1
    assert "; it has " in error
    assert "; the source has blocks." in error
    # A tensor that the GGUF lacks stays 16-bit: without any of its blocks nothing is quantised.
    status, printed, error = run(*guide, "--partial-guide")
    assert "\n--partial-guide: " in printed or "no layer would be quantised" in error
    assert status == (not printed)


def test_the_share_that_follows_a_part_is_noted(tmp_path, run):
    linear = [
        {name: math.prod(shape) for name, shape in wan_shapes("tiny", n).items() if len(shape) == 2}
        for n in (6, 12)
    ]
    share = sum(linear[0].values()) / sum(linear[1].values())
    status, printed, _ = run(*gguf_of(tmp_path / "g.gguf", 6), "--partial-guide")
    assert status == 0
    assert f"\n--partial-guide: {share:.0%} of the linear" in printed.replace(" %", "%")


def test_a_summary_covers_the_blocks_that_are_quantised(tmp_path, run):
    """Kinds that it does not tell of were not quantised when it was recorded, and edge blocks."""
    assert run(*summary_of(tmp_path / "s.json", range(2, 10)))[0] == 0


@pytest.mark.parametrize(
    ("blocks", "edges", "message"),
    [
        (range(2, 9), "2", "it has nothing for whole blocks: blocks.9; it has blocks.2.ffn.0"),
        (range(2, 10), "1", "it has nothing for whole blocks: blocks.1, blocks.10; it has"),
        (range(2, 12), "2", ""),
    ],
)
def test_a_summary_of_a_relative(tmp_path, run, blocks, edges, message):
    guide = (*summary_of(tmp_path / "s.json", blocks), "--edge-blocks", edges)
    status, _, error = run(*guide)
    assert status == bool(message)
    assert message in error
    assert run(*guide, "--partial-guide")[0] == 0
    # With a value for all layers that have no row, none lacks one.
    assert run(*guide, "--input-scale-value", "0.01")[0] == 0


@pytest.mark.parametrize("shipped", ["14b_lownoise", "14b_highnoise", "5b"])
def test_the_shipped_calibration_of_a_larger_wan_is_refused(run, shipped):
    name = f"scales_summary_wan22_{shipped}.json"
    status, _, error = run("--preset", "wan", "--input-scale-summary-json", name)
    assert status == 1
    assert f"{name}: is of another model, or only a part: whole blocks of it are not in" in error


def test_a_list_with_blocks_of_a_larger_model_is_refused(tmp_path, run):
    path = tmp_path / "l.txt"
    path.write_text("blocks.3.ffn.0\nblocks.30.ffn.0\n")
    status, _, error = run("--full-precision-mm-layers", path)
    assert status == 1
    assert "l.txt: is of another model, or only a part: whole blocks of it are not in" in error
    status, printed, _ = run("--full-precision-mm-layers", path, "--partial-guide")
    assert status == 0
    assert "note: l.txt: 1 name matches nothing: blocks.30.ffn.0" in printed


def test_measured_figures_with_blocks_of_a_larger_model_are_refused(tmp_path, run):
    path = tmp_path / "s.json"
    rows = [{"layer": f"blocks.{block}.ffn.0", "rel_rmse_mean": 0.2} for block in (3, 30)]
    path.write_text(json.dumps({"layers": rows}))
    status, _, error = run("--sensitivity-json", path, "--sensitivity-threshold", "0.1")
    assert status == 1
    assert "s.json: is of another model, or only a part: whole blocks of it are not in" in error


def test_a_list_that_ends_early_is_noted(tmp_path, run):
    """Half of the blocks are enough to be more than a few layers that a person wrote."""
    path = tmp_path / "l.txt"
    for blocks, noted in ((range(2, 8), True), (range(2, 10), False), (range(2, 4), False)):
        path.write_text("".join(f"blocks.{block}.ffn.0\n" for block in blocks))
        status, printed, _ = run("--full-precision-mm-layers", path)
        assert status == 0
        note = "note: l.txt names no layer of the last NVFP4 blocks: blocks.8, blocks.9\n"
        assert (note in printed) == noted


def test_text_encoders_in_a_gguf_are_no_part_of_another_model(tmp_path, run):
    shapes = {f"model.diffusion_model.{k}": shape for k, shape in wan_shapes("tiny", 12).items()}
    shapes["text_encoders.t5.encoder.block.0.layer.0.SelfAttention.q.weight"] = (256, 256)
    path = tmp_path / "g.gguf"
    write_gguf(path, shapes, lambda name, shape: wan_q5_k_m(name.rpartition("model.")[2], shape))
    assert run("--gguf", path, *BY_GGUF)[0] == 0


def test_odd_scales_do_not_make_a_reference_another_model(tmp_path, run):
    tensors = {}
    for row in ROWS:
        tensors[f"{row}.weight"] = torch.zeros(16, 8, dtype=torch.uint8)
        tensors[f"{row}.input_scale"] = torch.tensor(0.01 if "blocks.5." not in row else math.nan)
    save_file(tensors, tmp_path / "r.safetensors")
    status, printed, _ = run("--preset", "wan", "--input-scale-from", tmp_path / "r.safetensors")
    assert status == 0
    assert "note: r.safetensors: 2 input scales are left out, as none is one positive" in printed
