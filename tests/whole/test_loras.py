"""A model converted with a LoRA, against the model that it was merged into."""

from pathlib import Path

import torch
from safetensors.torch import load_file

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
