"""Quantised sources: what goes over as it is, and codes that come back as they were."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.errors import ConvertError
from nvfp4.source.open import open_source
from support.broken_integers import encoded
from support.scaled import by_blocks, configuration

G = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(128, 512, generator=G) * torch.rand(128, 1, generator=G)
LAYER = "blocks.0.a"


def saved(path, tensors, config):
    found = {f"{LAYER}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    found |= {f"{LAYER}.comfy_quant": configuration(**config)}
    found |= {f"blocks.{i}.b.weight": torch.randn(64, 256, generator=G) for i in range(3)}
    save_file(found, path)
    return path


def same(path, out, parts):
    before, after = load_file(path), load_file(out)
    return all(
        torch.equal(
            before[f"{LAYER}.{part}"].reshape(-1).view(torch.uint8),
            after[f"{LAYER}.{part}"].reshape(-1).view(torch.uint8),
        )
        for part in parts
    )


@pytest.mark.parametrize("title", ["W4A8", "W6A8", "NVFP4"])
def test_formats_of_few_bits_go_over_as_they_are(title, tmp_path, capsys):
    tensors, config = encoded(WEIGHT, title)
    path = saved(tmp_path / "m.safetensors", tensors, config)
    model, notes = open_source(path)
    assert model.quantised == {title: 1}
    (flaw,) = (note for note in notes if note.startswith("in the source"))
    assert "only one of comfy_quant and the header's entry" in flaw
    out = tmp_path / "o.safetensors"
    assert main([str(path), str(out), "--preset", "all", "--quiet"]) == 0
    assert "1 layer is quantised in the source and goes over as it is" in capsys.readouterr().out
    assert same(path, out, [*tensors, "comfy_quant"])
    assert main(["--verify", str(out), "--source", str(path), "--quiet"]) == 0
    assert "no defect found" in capsys.readouterr().out


def test_integers_of_comfyui_go_over_as_they_are(tmp_path, capsys):
    awq = {
        "weight": torch.randint(-128, 128, (128, 256), dtype=torch.int8),
        "weight_scale": torch.rand(8, 128).bfloat16() + 1,
        "weight_zeros": torch.randn(8, 128).bfloat16(),
    }
    for tensors, config in (
        encoded(WEIGHT, "ConvRot INT4"),
        (awq, {"format": "awq_w4a16", "group_size": 64}),
    ):
        path = saved(tmp_path / "m.safetensors", tensors, config)
        out = tmp_path / f"{config['format']}.safetensors"
        assert main([str(path), str(out), "--preset", "all", "--quiet"]) == 0
        assert same(path, out, [*tensors, "comfy_quant"])
        capsys.readouterr()
        assert main(["--verify", str(out), "--quiet"]) == 0
        text = capsys.readouterr().out
        assert "no defect found" in text
        assert f"needs ComfyUI {'0.28' if 'rot' in config['format'] else '0.37'} or newer" in text


KEPT = {"INT8": "int8", "INT8 not rotated": "int8_tensorwise", "MXFP8": "mxfp8"}


@pytest.mark.parametrize("title", KEPT)
def test_codes_and_scales_come_back_as_they_were(title, tmp_path, capsys):
    tensors, config = encoded(WEIGHT, title)
    tensors["weight"].view(torch.uint8)[3, 5] = 1
    path = saved(
        tmp_path / "m.safetensors", tensors, config | {"full_precision_matrix_mult": False}
    )
    asked = tmp_path / "c.json"
    asked.write_text(f'{{"{LAYER}": {{"format": "{KEPT[title]}"}}}}')
    out = tmp_path / "o.safetensors"
    command = [str(path), str(out), "--preset", "all", "--layer-config", str(asked), "--quiet"]
    assert main(command) == 0
    assert "quantised twice" not in capsys.readouterr().out
    assert same(path, out, tensors)
    # In another format they are quantised twice, and the note says what they were.
    assert main([str(path), str(out), "--preset", "all", "--formats", "nvfp4,16bit"]) == 0
    kind = title.partition(" ")[0]
    assert f"1 layer is {kind} in the source and quantised twice" in capsys.readouterr().out


def test_one_scale_of_int8_is_written_for_each_row(tmp_path):
    tensors = {"weight": torch.ones(128, 512, dtype=torch.int8), "weight_scale": torch.tensor(0.5)}
    path = saved(tmp_path / "m.safetensors", tensors, {"format": "int8_tensorwise"})
    asked, out = tmp_path / "c.json", tmp_path / "o.safetensors"
    asked.write_text(f'{{"{LAYER}": {{"format": "int8_tensorwise"}}}}')
    command = [str(path), str(out), "--preset", "all", "--layer-config", str(asked), "--quiet"]
    assert main(command) == 0
    assert same(path, out, ["weight"])
    assert torch.equal(load_file(out)[f"{LAYER}.weight_scale"], torch.full((128, 1), 0.5))


def test_scales_of_blocks_are_another_format_of_int8(tmp_path):
    codes, scale, _ = by_blocks(128, 128)(WEIGHT)
    codes = (codes.float() / 4).to(torch.int8)
    tensors = {"weight": codes, "weight_scale": scale}
    path = saved(tmp_path / "m.safetensors", tensors, {"format": "int8_tensorwise"})
    asked, out = tmp_path / "c.json", tmp_path / "o.safetensors"
    asked.write_text(f'{{"{LAYER}": {{"format": "int8_tensorwise"}}}}')
    command = [str(path), str(out), "--preset", "all", "--layer-config", str(asked), "--quiet"]
    assert main(command) == 0
    assert load_file(out)[f"{LAYER}.weight_scale"].shape == (128, 1)


def test_a_lora_changes_the_codes(tmp_path):
    tensors, config = encoded(WEIGHT, "INT8")
    path = saved(tmp_path / "m.safetensors", tensors, config)
    lora = {
        f"diffusion_model.{LAYER}.lora_A.weight": torch.ones(4, 512),
        f"diffusion_model.{LAYER}.lora_B.weight": torch.ones(128, 4),
    }
    save_file(lora, tmp_path / "lora.safetensors")
    asked, out = tmp_path / "c.json", tmp_path / "o.safetensors"
    asked.write_text(f'{{"{LAYER}": {{"format": "int8"}}}}')
    command = [str(path), str(out), "--preset", "all", "--layer-config", str(asked), "--quiet"]
    assert main([*command, "--merge-lora", str(tmp_path / "lora.safetensors")]) == 0
    assert not same(path, out, ["weight_scale"])


def test_w4a8_with_other_groups_is_refused_by_its_name(tmp_path):
    tensors, config = encoded(WEIGHT, "W4A8")
    path = saved(tmp_path / "m.safetensors", tensors, config | {"convrot_groupsize": 64})
    with pytest.raises(ConvertError, match="is stored as asym_w4a8_int8, which is not decoded"):
        open_source(path)


def test_the_choice_of_an_attention_goes_over(tmp_path):
    tensors, config = encoded(WEIGHT, "INT8")
    path, key = tmp_path / "m.safetensors", "blocks.0.comfy_attention.config"
    found = load_file(saved(path, tensors, config)) | {key: configuration(attention="x")}
    save_file(found, path)
    out = tmp_path / "o.safetensors"
    assert main([str(path), str(out), "--preset", "all", "--quiet"]) == 0
    assert torch.equal(load_file(out)[key], found[key])


def test_a_bank_of_experts_goes_over_as_it_is(tmp_path, capsys):
    for title in ("INT8", "W4A8", "NVFP4"):
        made, config = zip(*(encoded(WEIGHT + i, title) for i in range(3)), strict=True)
        tensors = {k: torch.stack([one[k] for one in made]) for k in made[0]}
        if title == "W4A8":
            tensors["weight_codebook"] = made[0]["weight_codebook"]
        config = config[0] | {"num_experts": 3}
        path, out = tmp_path / "m.safetensors", tmp_path / f"{title}.safetensors"
        saved(path, tensors, config)
        assert main([str(path), str(out), "--preset", "all", "--quiet"]) == 0
        assert same(path, out, [*tensors, "comfy_quant"])
        capsys.readouterr()
        assert main(["--verify", str(out), "--source", str(path), "--quiet"]) == 0
        assert "no defect found" in capsys.readouterr().out
