"""Embeddings that a --layer-config names: looked up by ComfyUI's own class as they were."""

import json
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui

EMBED = "llm_adapter.embed"
G = torch.Generator().manual_seed(0)
# 256 columns are rotated, 64 are not.
TABLES = {
    columns: torch.randn(40, columns, generator=G).mul(torch.rand(40, 1, generator=G)).bfloat16()
    for columns in (256, 64)
}
ERRORS = {"int8": 0.012, "fp8": 0.03}


def converted(folder, entry, *more, columns=256, key=EMBED):
    """Convert a model with an embedding by one entry of a layer config; returns the report."""
    weights = {f"blocks.{i}.ffn.0.weight": torch.ones(256, 256).bfloat16() for i in range(2)}
    save_file(weights | {f"{EMBED}.weight": TABLES[columns]}, folder / "m.safetensors")
    (folder / "c.json").write_text(json.dumps({key: entry}))
    arguments = ["--preset", "all", "--edge-blocks", "0", "--layer-config", str(folder / "c.json")]
    paths = [str(folder / "m.safetensors"), str(folder / "o.safetensors")]
    return c.convert(c.parse_options([*paths, *arguments, *more, "--quiet"]))


def stored(folder):
    """The embedding's tensors in the output: {suffix: tensor}."""
    found = load_file(folder / "o.safetensors")
    return {k.removeprefix(f"{EMBED}."): v for k, v in found.items() if k.startswith(EMBED)}


@pytest.mark.parametrize("columns", TABLES)
@pytest.mark.parametrize("word", ERRORS)
def test_an_embedding_that_is_named_is_quantised_and_verified(word, columns, tmp_path):
    report = converted(tmp_path, {"format": word}, columns=columns)
    config = json.loads(bytes(stored(tmp_path)["comfy_quant"].tolist()))
    expected = {"format": "float8_e4m3fn"}
    if word == "int8":
        rotation = {"convrot": True, "convrot_groupsize": 256} if columns == 256 else {}
        expected = {"format": "int8_tensorwise", **rotation}
    # Neither a mark nor an input scale: nothing is multiplied.
    assert config == expected
    assert stored(tmp_path).keys() == {"weight", "weight_scale", "comfy_quant"}
    assert report.damage[EMBED].relative_rmse < ERRORS[word]
    # Embeddings do no multiply work, but need the version that looks rows up.
    assert report.work["shares"]["FP4"] == 1
    assert report.work["comfyui"] == {"int8": "0.29", "fp8": "0.10"}[word]
    source, file = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    check = c.verify_file(c.Verification(file=file, source=source, quiet=True))
    assert check.findings == ()
    assert check.damage[EMBED].relative_rmse == pytest.approx(report.damage[EMBED].relative_rmse)


def test_the_plan_that_is_written_is_replayed(tmp_path):
    plan = tmp_path / "plan.json"
    converted(tmp_path, {"format": "int8"}, "--layer-config-out", str(plan))
    first = (tmp_path / "o.safetensors").read_bytes()
    (tmp_path / "o.safetensors").unlink()
    assert json.loads(plan.read_text())[EMBED] == {"format": "int8"}
    converted(tmp_path, {"format": "int8"})
    assert stored(tmp_path)["weight"].dtype == torch.int8
    assert (tmp_path / "o.safetensors").stat().st_size == len(first)


def test_scaled_fp8_has_its_older_names_for_it(tmp_path):
    converted(tmp_path, {"format": "fp8"}, "--recipe", "scaled-fp8")
    assert stored(tmp_path).keys() == {"weight", "scale_weight"}


def test_a_pattern_leaves_it_16_bit(tmp_path):
    converted(tmp_path, {"format": "int8"}, key=".*")
    assert stored(tmp_path).keys() == {"weight"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"format": "w4a8"}, "is no linear layer: ComfyUI's Anima has an Embedding there, which "
         "takes fp8, int8 alone"),
        ({"format": "fp8", "input_scale": 0.5}, "takes no mark and no input_scale: ComfyUI's Anima "
         "has an Embedding there, which multiplies nothing"),
        ({"format": "fp8", "full_precision_matrix_mult": True}, "takes no mark and no input_scale"),
    ],
)  # fmt: skip
def test_what_an_embedding_does_not_take_is_one_line(entry, told, tmp_path):
    with pytest.raises(c.ConvertError) as caught:
        converted(tmp_path, entry)
    assert told in str(caught.value)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "o.safetensors").exists()


LOOKUP = (
    PREAMBLE
    + """
import comfy.ops
rows = torch.tensor([[0, 7, 39], [7, 1, 20]])
found = {}
for path in json.loads(os.environ["FILES"]):
    state = comfy.utils.load_torch_file(path)
    expected = state.pop("expected")
    embedding = comfy.ops.mixed_precision_ops({}, torch.float32).Embedding(*expected.shape)
    embedding.load_state_dict(state)
    quantised = isinstance(embedding.weight, comfy.ops.QuantizedTensor)
    error = (embedding(rows).float() - expected[rows]).norm() / expected[rows].norm()
    found[path] = [quantised, float(error)]
print("RESULT", json.dumps(found))
"""
)


@needs_comfyui
def test_comfyui_looks_its_rows_up(tmp_path):
    allowed = {}
    for word, columns in product(ERRORS, TABLES):
        folder = tmp_path / f"{word}-{columns}"
        folder.mkdir()
        converted(folder, {"format": word}, columns=columns)
        file = folder / "e.safetensors"
        save_file(stored(folder) | {"expected": TABLES[columns].float()}, file)
        allowed[str(file)] = ERRORS[word]
    found, _ = run_comfyui(LOOKUP, FILES=json.dumps([*allowed]))
    assert found.keys() == allowed.keys()
    for file, (quantised, error) in found.items():
        assert quantised
        assert error < allowed[file]
