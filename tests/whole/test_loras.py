"""A model converted with a LoRA, against the model that it was merged into."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.loras import lora, opened, ours, rand


def test_a_merged_file_is_that_of_the_merged_model(tiny, tmp_path, capsys):
    """Bytes of the tensors; biases and what stays 16-bit, too. And --verify knows of the LoRA."""
    state = {}
    for shard in tiny.glob("*.safetensors"):
        state |= load_file(shard)
    given = lora("lora_unet_blocks_3_ffn_0", state["blocks.3.ffn.0.weight"].shape)
    given |= {"diffusion_model.blocks.3.ffn.0.diff_b": rand(len(state["blocks.3.ffn.0.bias"]))}
    given |= lora("diffusion_model.head.head", state["head.head.weight"].shape)
    given |= {"diffusion_model.patch_embedding.diff": rand(*state["patch_embedding.weight"].shape)}
    merged = state | ours(tmp_path, state, (given, 0.25))
    assert sum(not torch.equal(merged[name], state[name]) for name in state) == 4
    opened(tmp_path, merged, "merged")
    arguments = ["--preset", "none", "--include", r"blocks\.3\.ffn", "--quiet"]
    model, whole = str(tmp_path / "model.safetensors"), str(tmp_path / "merged.safetensors")
    out, other = str(tmp_path / "o.safetensors"), str(tmp_path / "other.safetensors")
    file = f"{tmp_path / 'lora0.safetensors'}:0.25"
    assert c.main([model, out, *arguments, "--merge-lora", file]) == 0
    assert "lora0.safetensors: merged into 4 tensors at strength 0.25" in capsys.readouterr().out
    assert c.main([whole, other, *arguments]) == 0
    ((found, _), (expected, _)) = (c.read_header(Path(path)) for path in (out, other))
    assert found.keys() == expected.keys()
    for name, ref in found.items():
        assert torch.equal(c.load_bytes(ref), c.load_bytes(expected[name])), name
    assert c.main(["--verify", out, "--source", model, "--quiet"]) == 1
    assert c.main(["--verify", out, "--source", model, "--merge-lora", file, "--quiet"]) == 0


def test_a_folder_of_peft_is_merged_at_its_trained_scale(tiny, tmp_path, capsys):
    """And --verify merges it at the same one."""
    state = {}
    for shard in tiny.glob("*.safetensors"):
        state |= load_file(shard)
    opened(tmp_path, state)
    layer, folder = "blocks.3.ffn.0", tmp_path / "peft"
    folder.mkdir()
    given = lora(f"base_model.model.{layer}", state[f"{layer}.weight"].shape, rank=4)
    given = {key.replace("lora_up", "lora_B"): value for key, value in given.items()}
    given = {key.replace("lora_down", "lora_A"): value for key, value in given.items()}
    save_file(given, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    model, out = str(tmp_path / "model.safetensors"), str(tmp_path / "o.safetensors")
    arguments = ["--preset", "none", "--include", r"blocks\.1\.ffn", "--dtype", "float32"]
    report = tmp_path / "r.json"
    merge = ["--merge-lora", f"{folder}:0.5"]
    assert c.main([model, out, *arguments, *merge, "--report", str(report), "--quiet"]) == 0
    a, b = (given[f"base_model.model.{layer}.lora_{x}.weight"] for x in "AB")
    # alpha / sqrt(rank) is 3, and the strength 0.5.
    expected = state[f"{layer}.weight"].float() + 0.5 * 3 * b @ a
    assert torch.allclose(load_file(out)[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-6)
    printed = capsys.readouterr().out
    for note in ("peft: merged into 1 tensor at strength 0.5", "it was trained with, 3 (alpha"):
        assert note in printed
        assert note in report.read_text(encoding="utf-8")
    assert c.main(["--verify", out, "--source", model, "--quiet"]) == 1
    assert c.main(["--verify", out, "--source", model, *merge, "--quiet"]) == 0
