"""Inputs that are modelled: random rows through the layers of a Wan whose inputs are known."""

import json
import sys

import model_inputs
import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.calibration import recorded_calibration
from nvfp4.guides.recording import load_statistics, read_recording
from nvfp4.options import Options

DIM, FREQUENCIES, TEXT, CHANNELS = 64, 8, 24, 4


@pytest.fixture
def tensors():
    """A Wan whose blocks change nothing: q, k, v and ffn.0 are identities, o and ffn.2 zero."""
    eye, zero = torch.eye(DIM), torch.zeros(DIM, DIM)
    made = {
        "patch_embedding": torch.randn(DIM, CHANNELS, 1, 2, 2),
        "text_embedding.0": torch.randn(DIM, TEXT),
        "text_embedding.2": eye,
        "time_embedding.0": torch.randn(DIM, FREQUENCIES),
        "time_embedding.2": eye,
        "time_projection.1": torch.zeros(6 * DIM, DIM),
        "head.head": torch.zeros(16, DIM),
    }
    for block in ("blocks.0", "blocks.1"):
        for attention in ("self_attn", "cross_attn"):
            parts = {"q": eye, "k": eye, "v": eye, "o": zero}
            made |= {f"{block}.{attention}.{part}": weight for part, weight in parts.items()}
        made |= {f"{block}.ffn.0": eye, f"{block}.ffn.2": zero}
    tensors = {f"{name}.weight": weight for name, weight in made.items()}
    tensors |= {f"{name}.bias": torch.zeros(len(weight)) for name, weight in made.items()}
    for block in ("blocks.0", "blocks.1"):
        tensors[f"{block}.modulation"] = torch.zeros(1, 6, DIM)
        tensors[f"{block}.norm3.weight"] = torch.full((DIM,), 2.0)
        tensors[f"{block}.norm3.bias"] = torch.full((DIM,), 0.5)
    # What shifts and scales the input of ffn.0.
    tensors["blocks.1.modulation"][0, 3], tensors["blocks.1.modulation"][0, 4] = 3.0, -0.5
    return {name: tensor.clone() for name, tensor in tensors.items()}


def modelled(monkeypatch, folder, tensors, *more):
    model, output = folder / "wan.safetensors", folder / "made.safetensors"
    save_file(tensors, model)
    output.unlink(missing_ok=True)
    command = [str(model), "-o", str(output), "--rows", "2000", "--layers", "all", *more]
    monkeypatch.setattr(sys, "argv", ["model_inputs.py", *command])
    model_inputs.main()
    return output


def test_statistics_are_those_of_what_the_layers_are_given(monkeypatch, tmp_path, tensors):
    torch.manual_seed(0)
    found = read_recording(modelled(monkeypatch, tmp_path, tensors))
    assert len(found) == 2 * 10
    given = {
        layer: load_statistics(recorded.moments, torch.device("cpu"))
        for layer, recorded in found.items()
    }

    def energy(layer):
        return float(given[layer].second.trace()) / DIM

    def mean(layer):
        return float(given[layer].mean.mean())

    assert found["blocks.0.self_attn.q"].moments == found["blocks.0.self_attn.v"].moments
    for block in ("blocks.0", "blocks.1"):
        # Normalised rows have energy 1; the mean of two that are independent has half of it.
        assert energy(f"{block}.self_attn.q") == pytest.approx(1, rel=1e-3)
        assert energy(f"{block}.self_attn.o") == pytest.approx(0.5, rel=0.05)
        # norm3 doubles them and adds a half.
        assert energy(f"{block}.cross_attn.q") == pytest.approx(4.25, rel=1e-3)
        assert mean(f"{block}.cross_attn.q") == pytest.approx(0.5, rel=1e-3)
    # Modulation halves them and adds 3; GELU leaves nearly all of that as it is.
    assert mean("blocks.1.ffn.0") == pytest.approx(3, rel=1e-3)
    assert energy("blocks.1.ffn.0") == pytest.approx(9.25, rel=1e-3)
    assert mean("blocks.1.ffn.2") == pytest.approx(3, rel=1e-2)
    # The mean of GELU of a normal number is 1 / (2 sqrt(pi)).
    assert mean("blocks.0.ffn.2") == pytest.approx(0.2821, rel=0.05)
    # A quarter of the text is padding, whose rows are zero without biases.
    rows = given["blocks.0.cross_attn.k"].rows
    assert 0.1 < float((rows == 0).all(1).float().mean()) < 0.4


def test_what_an_image_gives_is_normalised(monkeypatch, tmp_path, tensors):
    """Models that take an image have a second cross-attention, of what img_emb puts out."""
    tensors["img_emb.proj.4.weight"] = torch.full((DIM,), 3.0)
    tensors["img_emb.proj.4.bias"] = torch.full((DIM,), 1.0)
    for block in ("blocks.0", "blocks.1"):
        for part in ("k_img", "v_img"):
            tensors[f"{block}.cross_attn.{part}.weight"] = torch.eye(DIM)
            tensors[f"{block}.cross_attn.{part}.bias"] = torch.zeros(DIM)
    found = read_recording(modelled(monkeypatch, tmp_path, tensors))
    assert len(found) == 2 * 12
    given = load_statistics(found["blocks.1.cross_attn.v_img"].moments, torch.device("cpu"))
    assert float(given.second.trace()) / DIM == pytest.approx(10, rel=0.02)
    assert float(given.mean.mean()) == pytest.approx(1, rel=0.05)


def test_quantised_models_are_refused(monkeypatch, tmp_path, tensors):
    tensors["head.head.weight"] = tensors["head.head.weight"].to(torch.float8_e4m3fn)
    tensors["head.head.weight_scale"] = torch.tensor(1.0)
    text = json.dumps({"format": "float8_e4m3fn"}).encode()
    tensors["head.head.comfy_quant"] = torch.tensor([*text], dtype=torch.uint8)
    with pytest.raises(SystemExit, match=r"is quantised \(head.head\); give the 16- or 32-bit"):
        modelled(monkeypatch, tmp_path, tensors)


def test_no_input_scale_is_taken_from_maxima_that_are_modelled(monkeypatch, tmp_path, tensors):
    found = read_recording(modelled(monkeypatch, tmp_path, tensors))
    assert all(recorded.is_modelled for recorded in found.values())
    with pytest.raises(ConvertError, match="have no largest values of prompts"):
        recorded_calibration(Options(source="s.safetensors", output="o.safetensors"), found)


def test_a_seed_decides_everything(monkeypatch, tmp_path, tensors):
    made = [
        modelled(monkeypatch, tmp_path, tensors, "--seed", seed).read_bytes()
        for seed in ("1", "1", "2")
    ]
    assert made[0] == made[1] != made[2]
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_other_models_and_files_that_are_there_are_refused(monkeypatch, tmp_path, tensors, capsys):
    del tensors["time_projection.1.weight"]
    with pytest.raises(SystemExit, match="is no Wan"):
        modelled(monkeypatch, tmp_path, tensors)
    with pytest.raises(SystemExit):
        modelled(monkeypatch, tmp_path, tensors, "--noise", "1", "0")
    assert "the smaller one first" in capsys.readouterr().err
    for rows in ("-5", "0", "19"):
        with pytest.raises(SystemExit) as left:
            modelled(monkeypatch, tmp_path, tensors, "--rows", rows)
        assert left.value.code == 2
        assert "--rows: give 20 or more" in capsys.readouterr().err
    (tmp_path / "made.safetensors").touch()
    with pytest.raises(SystemExit):
        model_inputs.main()
    assert "give a new name" in capsys.readouterr().err
