"""Names that torch.compile and other wrappers change, in every file that names layers."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.calibration import read_reference_scales
from nvfp4.guides.layer_config import match_layer_list
from nvfp4.guides.recording import RECORDING_FORMAT, read_recording
from nvfp4.model import WRAPPERS, unwrapped
from nvfp4.read.checkpoint import open_model
from support.logs import line, log_of, rows_of
from support.plans import plans_of
from support.recorder import recorder

METADATA = {"format": RECORDING_FORMAT, "version": "1"}
WRAPPED = {
    "blocks.0._orig_mod.ffn.0": "blocks.0.ffn.0",
    "_orig_mod.blocks.0.ffn.0": "blocks.0.ffn.0",
    "blocks.0.ffn.0._orig_mod": "blocks.0.ffn.0",
    "module.blocks.0.ffn.0": "blocks.0.ffn.0",
    "module._orig_mod.module.blocks.0.ffn.0": "blocks.0.ffn.0",
    "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.ffn.0": "blocks.0.ffn.0",
    "blocks.0._checkpoint_wrapped_module._orig_mod.ffn.0": "blocks.0.ffn.0",
    "diffusion_model._orig_mod.blocks.0.ffn.0": "diffusion_model.blocks.0.ffn.0",
    "model.diffusion_model.module.blocks.0.ffn.0": "model.diffusion_model.blocks.0.ffn.0",
    "module.diffusion_model.blocks.0.ffn.0": "diffusion_model.blocks.0.ffn.0",
    # What only looks like one.
    "blocks.0.my_orig_mod.ffn": "blocks.0.my_orig_mod.ffn",
    "blocks.0.module.ffn": "blocks.0.module.ffn",
    "modules.0.ffn": "modules.0.ffn",
    "": "",
}


@pytest.mark.parametrize(("name", "plain"), WRAPPED.items())
def test_what_wrappers_put_into_a_name_is_stripped(name, plain):
    assert unwrapped(name) == plain


def compiled_name(layer):
    """blocks.2.ffn.0 as the layer of a compiled block, and the whole compiled, too."""
    return "_orig_mod." + re.sub(r"^(blocks\.\d+)\.", r"\1._orig_mod.", layer)


def scales(planned):
    return {layer: plan.input_scale for layer, plan in planned[0].items()}


def test_a_recording_of_a_compiled_model(tiny, recording, tmp_path):
    path = tmp_path / "compiled.safetensors"
    tensors = load_file(recording)
    save_file({compiled_name(name): value for name, value in tensors.items()}, path, METADATA)
    policy = ("--input-scale-policy", "headroom", "--activation-stats")
    assert scales(plans_of(tiny, *policy, str(path))) == scales(
        plans_of(tiny, *policy, str(recording))
    )


def test_a_layer_under_both_names_adds_up(recording, tmp_path):
    tensors, path = load_file(recording), tmp_path / "both.safetensors"
    both = tensors | {compiled_name(name): value.clone() for name, value in tensors.items()}
    save_file(both, path, METADATA)
    once, twice = read_recording(recording), read_recording(path)
    assert once.keys() == twice.keys()
    for name, layer in once.items():
        assert twice[name].energy == 2 * layer.energy
        assert twice[name].block_histogram.sum() == 2 * layer.block_histogram.sum()
    key = next(name for name in tensors if name.endswith(".absmax"))
    both[compiled_name(key)] = torch.ones(len(tensors[key]) + 16)

    save_file(both, path, METADATA)
    with pytest.raises(ConvertError, match="has other columns"):
        read_recording(path)


def test_summaries_lists_and_sensitivity_files_of_a_compiled_model(tiny, tmp_path):
    layer = "blocks.2.ffn.0"
    name = compiled_name(layer)
    summary, listed = tmp_path / "s.json", tmp_path / "l.txt"
    row = {"layer": name, "scale_p99_9": 0.25, "rel_rmse_mean": 0.5}
    summary.write_text(json.dumps({"layers": [row]}))
    plans = plans_of(tiny, "--input-scale-summary-json", str(summary), "--partial-guide")
    assert scales(plans)[layer] == pytest.approx(0.25)
    sensitive = ("--sensitivity-json", str(summary), "--sensitivity-threshold", "0.1")
    plans, _ = plans_of(tiny, *sensitive, "--sensitivity-action", "fp16")
    assert not plans[layer].precision.is_quantised
    listed.write_text(f"{name}  # compiled\n")
    found = match_layer_list(listed, open_model(tiny))
    assert (found.weights, found.unknown) == ({f"{layer}.weight"}, frozenset())


def test_input_scales_of_a_compiled_model(tmp_path):
    name = compiled_name("blocks.2.ffn.0")
    tensors = {f"{name}.weight": torch.zeros(16, 8, dtype=torch.uint8)}
    save_file(tensors | {f"{name}.input_scale": torch.tensor(0.5)}, tmp_path / "r.safetensors")
    assert [*read_reference_scales(tmp_path / "r.safetensors")[0]] == ["blocks.2.ffn.0"]


def test_the_recorder_knows_the_same_wrappers():
    assert recorder.WRAPPERS == WRAPPERS


def test_a_log_of_a_compiled_model_goes_on_with_a_plain_one(tmp_path, capsys):
    log = log_of(tmp_path, line(compiled_name("blocks.2.ffn.0")), line("blocks.2.ffn.0"))
    _, rows, _ = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert {name: row["count"] for name, row in rows.items()} == {"blocks.2.ffn.0": 2}


def test_an_earlier_summary_of_a_compiled_model_is_read_plainly(tmp_path, capsys):
    path = tmp_path / "s.json"
    row = {"layer": compiled_name("blocks.2.ffn.0"), "scale_mean": 1.0, "scale_std": 0.1}
    path.write_text(json.dumps({"layers": [row | {"scale_p50": 1.0}]}))
    assert [*rows_of(tmp_path, "--summary", path, capsys=capsys)[1]] == ["blocks.2.ffn.0"]
