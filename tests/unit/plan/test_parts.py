"""Text encoders of checkpoints: planned each by its row, or left as they are."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.families import checkpoint_encoders
from nvfp4.options import part_options
from nvfp4.reasons import Why
from support.all_in_one import CLIP, MODEL, T5, wan
from support.small_t5 import t5

CLIP_LAYER = f"{CLIP}text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "wan.safetensors"
    tensors = {MODEL + name: tensor for name, tensor in wan().items()}
    tensors |= {T5 + name: tensor for name, tensor in t5().items()}
    tensors |= {CLIP_LAYER: torch.ones(64, 64).half(), "vae.decoder.conv1.weight": torch.ones(4)}
    save_file(tensors, path)
    return path


def planned(source, *arguments):
    return convert(parse_options([str(source), "o.safetensors", "--dry-run", *arguments]))


def test_encoders_are_converted_where_that_is_asked_for(checkpoint, tmp_path):
    output = tmp_path / "o.safetensors"
    report = convert(
        parse_options([str(checkpoint), str(output), "--text-encoder-preset", "auto", "--quiet"])
    )
    found = load_file(output)
    dtypes = {
        f"{T5}encoder.block.1.layer.0.SelfAttention.q.weight": torch.uint8,
        f"{T5}encoder.block.1.layer.0.SelfAttention.v.weight": torch.int8,
        f"{T5}shared.weight": torch.int8,
        f"{T5}spiece_model": torch.uint8,
        f"{MODEL}blocks.2.self_attn.q.weight": torch.uint8,
        CLIP_LAYER: torch.float16,
    }
    assert {name: found[name].dtype for name in dtypes} == dtypes
    with safe_open(output, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    marked = {"format": "nvfp4", "full_precision_matrix_mult": True}
    assert layers[f"{T5}encoder.block.1.layer.0.SelfAttention.q"] == marked
    assert layers[f"{MODEL}blocks.2.self_attn.q"] == {"format": "nvfp4"}
    notes = "\n".join(report.notes)
    assert f"{T5}*: recognised as T5 (umt5-xxl): --preset t5" in notes
    assert "as ComfyUI reads no quantised layers of them there: text_encoders.clip_l" in notes
    assert main(["--verify", str(output), "--source", str(checkpoint), "--quiet"]) == 0


def test_the_diffusion_model_is_planned_as_without(checkpoint):
    alone = planned(checkpoint)
    both = planned(checkpoint, "--text-encoder-preset", "auto", "--exclude", "self_attn.q")
    names = {plan.ref.name for plan in alone.plans if plan.is_quantised}
    assert all(name.startswith(MODEL) for name in names)
    others = {plan.ref.name: plan for plan in both.plans if plan.is_quantised}
    assert {name for name in others if name.startswith(MODEL)} < names
    # The work of a step has no encoder's.
    assert alone.work["run"] == both.work["run"]
    again = planned(checkpoint, "--text-encoder-preset", "auto")
    assert again.work["shares"] == alone.work["shares"]


def test_target_size_leaves_encoders_to_their_rows(checkpoint):
    size = planned(checkpoint, "--text-encoder-preset", "auto").output_bytes + 20_000
    report = planned(checkpoint, "--text-encoder-preset", "auto", "--target-size", str(size))
    kinds = {plan.reason.kind for plan in report.plans if plan.ref.name.startswith(T5)}
    assert Why.TARGET_SIZE not in kinds
    assert any(plan.reason.kind is Why.TARGET_SIZE for plan in report.plans)


def test_options_of_the_diffusion_model_are_not_the_encoder_s():
    arguments = ["--text-encoder-preset", "smart", "--exclude", "x", "--input-scale-value", "1"]
    arguments += ["--formats", "nvfp4,fp8,16bit", "--dtype", "float16", "--edge-blocks", "3"]
    found = part_options(parse_options(["a.safetensors", "b.safetensors", *arguments]))
    assert (found.preset, found.exclude, found.input_scale_value) == ("smart", (), None)
    assert (found.formats, found.dtype, found.edge_blocks) == (
        ("nvfp4", "fp8", "16bit"),
        "float16",
        None,
    )


def test_without_a_text_encoder_the_option_is_refused(tmp_path):
    path = tmp_path / "wan.safetensors"
    save_file(wan(), path)
    with pytest.raises(ConvertError, match=r"--text-encoder-preset: .* has no text encoder beside"):
        planned(path, "--text-encoder-preset", "auto")
    named = {MODEL + name: tensor for name, tensor in wan().items()}
    save_file(named | {CLIP_LAYER: torch.ones(64, 64)}, path)
    with pytest.raises(ConvertError, match=r"clip_l\.transformer\., but ComfyUI"):
        planned(path, "--text-encoder-preset", "auto")


def test_what_comfyui_reads_quantised_depends_on_the_checkpoint():
    shapes = {f"text_encoders.t5xxl.transformer.{name}": x.shape for name, x in t5().items()}
    prefix = "text_encoders.t5xxl.transformer."
    assert checkpoint_encoders(shapes, "flux") == ({prefix: "t5"}, [])
    assert checkpoint_encoders(shapes, "cogvideox") == ({}, [prefix])
