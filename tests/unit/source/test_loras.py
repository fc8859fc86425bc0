"""LoRAs merged into a model: formulas, names, and what does not fit."""

import numpy as np
import pytest
import torch

from nvfp4.errors import ConvertError
from nvfp4.model import Lora
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source
from support.all_in_one import wan
from support.loras import ALPHA, LINEAR, loha, lokr, lora, opened, ours, rand


def exact(tensors):
    return {key.removeprefix("x."): value.double().numpy() for key, value in tensors.items()}


def test_lora_formula(tmp_path):
    given = lora("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, -0.5))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w - 0.5 * 2.5 / 4 * p["lora_up.weight"] @ p["lora_down.weight"]
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_loha_formula(tmp_path):
    given = loha("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, 2.0))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w + 2 * 2.5 / 3 * (p["hada_w1_a"] @ p["hada_w1_b"]) * (
        p["hada_w2_a"] @ p["hada_w2_b"]
    )
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_lokr_formula(tmp_path):
    given = lokr("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, 2.0))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w + 2 * 2.5 / 3 * np.kron(p["lokr_w1"], p["lokr_w2_a"] @ p["lokr_w2_b"])
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_tucker_lokr_formula(tmp_path):
    """ComfyUI logs an error and merges nothing: torch.kron refuses what einsum returns."""
    parts = {"w1": rand(4, 2), "w2_a": rand(3, 8), "w2_b": rand(3, 4), "t2": rand(3, 3, 3, 3)}
    given = {f"x.lokr_{part}": value for part, value in parts.items()} | {
        "x.alpha": torch.tensor(2.0)
    }
    state = {"x.weight": rand(32, 8, 3, 3)}
    merged = ours(tmp_path, state, (given, 0.5))
    p = {part: value.double().numpy() for part, value in parts.items()}
    second = np.einsum("ijkl,jr,ip->prkl", p["t2"], p["w2_b"], p["w2_a"])
    change = np.stack([[np.kron(p["w1"], second[..., i, j]) for j in range(3)] for i in range(3)])
    expected = state["x.weight"].double().numpy() + 0.5 * 2 / 3 * change.transpose(2, 3, 0, 1)
    np.testing.assert_allclose(merged["x.weight"], expected, rtol=1e-5, atol=1e-5)


def test_dora_formula(tmp_path):
    given = lora("x", (32, 16), dora_scale=rand(32).abs(), **ALPHA)  # one dimension: PEFT's habit
    merged = ours(tmp_path, LINEAR, (given, 0.5))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    whole = w + 2.5 / 4 * p["lora_up.weight"] @ p["lora_down.weight"]
    whole *= (p["dora_scale"] / np.linalg.norm(w, axis=1))[:, None]
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], w + (whole - w) / 2, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("diffusers", "native"),
    [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q"),
        ("blocks.0.attn1.to_out.0", "blocks.0.self_attn.o"),
        ("blocks.0.attn1.norm_q", "blocks.0.self_attn.norm_q"),
        ("blocks.0.attn2.to_v", "blocks.0.cross_attn.v"),
        ("blocks.0.attn2.to_out.0", "blocks.0.cross_attn.o"),
        ("blocks.0.attn2.norm_k", "blocks.0.cross_attn.norm_k"),
        ("blocks.0.attn2.add_k_proj", "blocks.0.cross_attn.k_img"),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", "blocks.0.ffn.2"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.", "diffusion_model."])
def test_wan_in_the_names_of_diffusers(tmp_path, prefix, diffusers, native):
    state = {f"{native}.weight": rand(8, 8), "blocks.0.cross_attn.out.weight": rand(8, 8)}
    merged = ours(tmp_path, state, (lora(prefix + diffusers, (8, 8)), 1.0))
    assert list(merged) == [f"{native}.weight"]


def test_bias_of_a_fused_part(tmp_path):
    """ComfyUI leaves these out; the rows are the weight's."""
    state = {
        "double_blocks.0.img_attn.qkv.weight": rand(96, 32),
        "double_blocks.0.img_attn.qkv.bias": rand(96),
    }
    added = rand(32)
    merged = ours(
        tmp_path, state, ({"transformer.transformer_blocks.0.attn.to_k.diff_b": added}, 1.0)
    )
    bias = state["double_blocks.0.img_attn.qkv.bias"].clone()
    bias[32:64] += added
    assert torch.equal(merged["double_blocks.0.img_attn.qkv.bias"], bias)


def test_unmatched_keys_are_an_error_or_counted(tmp_path):
    given = lora("lora_unet_x", (32, 16)) | lora("lora_te_y", (8, 8))
    given |= lora("text_encoder.z", (8, 8)) | lora("other", (8, 8), **ALPHA)
    given |= {"x.oft_blocks": rand(2), "strange": rand(1), "lost.alpha": rand(1)}
    given |= {"only.diff_b": rand(2), "x.diff_b": rand(3)}
    told = (
        "11 keys match no tensor of the model, 4 of a text encoder, 1 of OFT: "
        "lora_te_y.lora_down.weight, lora_te_y.lora_up.weight, lost.alpha and 8 more"
    )
    misfit = "does not fit the model: x.diff_b [3] do not fit model.diffusion_model.x.bias [32]"
    (path,) = opened(tmp_path, given, "lora").files
    files, model = [Lora(path, 1.0)], opened(tmp_path, LINEAR)
    with pytest.raises(ConvertError) as error:
        merge_loras(files, model, partial=False)
    assert error.value.problems == (f"{path}: {misfit}", f"{path}: {told}; --lora-partial goes on")
    model, notes = merge_loras(files, model, partial=True)
    assert [*notes] == [
        f"lora.safetensors: {note}" for note in ("merged into 1 tensor at strength 1", misfit, told)
    ]
    assert sum(bool(ref.patches) for ref in model.tensors.values()) == 1


def test_a_lora_that_matches_nothing_is_an_error_even_partially(tmp_path):
    (path,) = opened(tmp_path, lora("other", (8, 8)), "lora").files
    with pytest.raises(ConvertError, match="nothing of it can be merged"):
        merge_loras([Lora(path, 1.0)], opened(tmp_path, LINEAR), partial=True)


WRONG = {
    "not fit the model: x.lora_down.weight [4, 32], x.lora_up.weight [16, 4] do not fit "
    "model.diffusion_model.x.weight [32, 16]": lora("x", (16, 32)),
    "not fit the model: x.lora_down.weight [5, 16], x.lora_up.weight [32, 4] do not fit "
    "model.diffusion_model.x.weight [32, 16]": {
        "x.lora_up.weight": rand(32, 4),
        "x.lora_down.weight": rand(5, 16),
    },
    "x.lora_up.weight [32, 4]: down is missing": {"x.lora_up.weight": rand(32, 4)},
    "x is diff and lora at once; keep one kind": {"x.diff": rand(32, 16)} | lora("x", (32, 16)),
    "x.lora_down.weight and x.lora_A.weight are the same thing twice": lora("x", (32, 16))
    | lora("x", (32, 16), names=".lora_{B,A}.weight"),
    "and another name are both model.diffusion_model.x.weight": lora("x", (32, 16))
    | lora("lora_unet_x", (32, 16)),
    "x.diff_b [16] do not fit model.diffusion_model.x.bias [32]": {"x.diff_b": rand(16)},
    "x.dora_scale [3, 1] do not fit": lora("x", (32, 16), dora_scale=rand(3, 1)),
    "x.alpha [2] do not fit": lora("x", (32, 16), alpha=rand(2)),
    "x.lora_down.weight is I16; give the LoRA in a 16-bit type": {
        k: v.to(torch.int16) for k, v in lora("x", (32, 16)).items()
    },
}


@pytest.mark.parametrize("problem", WRONG)
def test_errors_before_anything_is_merged(tmp_path, problem):
    with pytest.raises(ConvertError) as error:
        ours(tmp_path, LINEAR, (WRONG[problem], 1.0))
    assert problem in str(error.value)
    assert str(tmp_path / "lora0.safetensors") in str(error.value)
    assert len(error.value.problems) == 1


def test_rows_are_named_in_an_error(tmp_path):
    state = {"double_blocks.0.img_attn.qkv.weight": rand(96, 32)}
    with pytest.raises(ConvertError, match=r"do not fit rows 32 on of double_blocks.*\[96, 32\]"):
        ours(tmp_path, state, (lora("transformer_blocks.0.attn.to_k", (48, 32)), 1.0))


def test_a_lora_that_leaves_no_numbers_is_an_error(tmp_path):
    given = lora("x", (32, 16), **ALPHA)
    given["x.lora_up.weight"][3, 1] = float("inf")
    with pytest.raises(ConvertError, match=r"lora0\.safetensors: .*x\.weight holds NaN or Inf aft"):
        ours(tmp_path, LINEAR, (given, 1.0))


def test_layers_that_are_quantised_already_are_counted_apart(converted, tmp_path):
    shape = (256, 256)
    given = lora("blocks.3.self_attn.q", shape) | lora("blocks.0.self_attn.q", shape)
    (path,) = opened(tmp_path, given, "lora").files
    model, _ = open_source(converted)
    with pytest.raises(ConvertError, match=r"1 layer is quantised in the source already, so"):
        merge_loras([Lora(path, 1.0)], model, partial=False)
    _, notes = merge_loras([Lora(path, 1.0)], model, partial=True)
    assert notes[0].startswith("lora.safetensors: merged into 1 tensor")
    assert len(notes) == 2


def test_a_lora_as_the_source_is_named(tmp_path):
    (path,) = opened(tmp_path, lora("blocks.0.x", (32, 32)), "lora").files
    with pytest.raises(ConvertError, match="is a LoRA: give the model, and this with --merge-l"):
        open_source(path)


@pytest.mark.parametrize("parts", [["oft_blocks", "alpha"], ["a1.weight", "a2.weight", "alpha"]])
def test_kinds_that_are_not_merged_are_not_sent_to_merge_lora(tmp_path, parts):
    given = {f"lora_unet_blocks_0_q.{part}": rand(4, 4) for part in parts}
    (path,) = opened(tmp_path, given, "lora").files
    with pytest.raises(ConvertError, match=r"a LoRA of the kind (OFT|GLoRA): --merge-lora does n"):
        open_source(path)
    with pytest.raises(ConvertError, match=r"a LoRA of the kind (OFT|GLoRA), not a LoRA that can"):
        ours(tmp_path, LINEAR, (given, 1.0))


def test_a_whole_file_given_as_a_lora_is_named(tmp_path):
    model = opened(tmp_path, LINEAR)
    encoder = {
        "encoder.block.0.layer.0.SelfAttention.q.weight": rand(8, 8),
        "shared.weight": rand(8, 8),
    }
    (path,) = opened(tmp_path, encoder, "encoder").files
    (whole,) = opened(tmp_path, wan(), "whole").files
    for given, title in ((whole, "a whole model"), (path, "a text encoder")):
        for partial in (False, True):
            with pytest.raises(ConvertError, match=f"is {title}, not a LoRA"):
                merge_loras([Lora(given, 1.0)], model, partial=partial)


def test_a_file_that_is_given_twice_is_told(tmp_path):
    model = opened(tmp_path, LINEAR)
    (path,) = opened(tmp_path, lora("x", (32, 16)), "lora").files
    (other,) = opened(tmp_path, lora("x", (32, 16)), "other").files
    again = path.parent / "." / ".." / path.parent.name / path.name
    notes = merge_loras([Lora(path, 1.0), Lora(again, 0.5)], model, partial=False).notes
    assert "lora.safetensors: is given 2 times, and counts as often" in notes
    notes = merge_loras([Lora(path, 1.0), Lora(other, 1.0)], model, partial=False).notes
    assert not any("times" in note for note in notes)
