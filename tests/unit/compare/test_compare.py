"""compare_models.py: the owner's analysis reproduced on its own pair, and sides of any kind."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from make_wan import wan_shapes, write_gguf
from safetensors.torch import load_file, save_file

from nvfp4.compare.entry import compare_models
from nvfp4.compare.tables import Table, table_lines
from nvfp4.dtypes import SAFETENSORS_BITS
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.read import read_guides
from nvfp4.layout import make_job
from nvfp4.options.table import Options
from nvfp4.plan.make import make_plans
from nvfp4.read.checkpoint import open_model, read_header
from nvfp4.report.lines import broken
from nvfp4.stored.defects import DEFECTS, Outcome
from support.broken import CASES, write_case
from support.conversions import convert_and_measure
from support.files import header_only


def run(*arguments, capsys):
    status = compare_models([*map(str, arguments)])
    return status, capsys.readouterr().out


def data_of(*arguments, capsys):
    status, out = run(*arguments, "--json", capsys=capsys)
    return status, json.loads(out)


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The pair of the owner's analysis, at full size: a working scaled-FP8 Wan 2.2 5B, and the
    NVFP4 file that gave noise: all 306 linear layers packed, float16, no input scale."""
    folder, shapes = tmp_path_factory.mktemp("documented"), wan_shapes("5b")
    linear = [name for name, shape in shapes.items() if len(shape) == 2 and "weight" in name]
    working = {name: ("F32", shape) for name, shape in shapes.items()}
    for name in linear:
        if name.startswith("blocks."):
            working[name] = ("F8_E4M3", shapes[name])
            working[name.replace(".weight", ".scale_weight")] = ("F32", (1,))
    working["scaled_fp8"] = ("F8_E4M3", (2,))
    noisy = {name: ("F16", shape) for name, shape in shapes.items()}
    for name in linear:
        for suffix, part in NVFP4.parts(shapes[name]).items():
            noisy[name.removesuffix("weight") + suffix] = part
    layers = {name.removesuffix(".weight"): {"format": "nvfp4"} for name in linear}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    return (
        header_only(folder / "working.safetensors", dict(sorted(working.items(), key=by_size)), {}),
        header_only(
            folder / "noisy.safetensors", dict(sorted(noisy.items(), key=by_size)), metadata
        ),
    )


def by_size(item):
    return -SAFETENSORS_BITS[item[1][0]]


def test_the_documented_pair_shows_every_documented_finding(documented, capsys):
    status, data = data_of(*documented, capsys=capsys)
    a, b = data["a"], data["b"]
    assert status == 0
    assert not data["same_structure"]
    # 4. tensor count
    assert (a["tensors"], b["tensors"]) == (1126, 1437)
    # 1. quantisation scheme, full against half width, no input scale
    assert a["schemes"]["scaled FP8 W8A16"]["layers"] == 300
    assert {label: found["layers"] for label, found in b["schemes"].items()} == {
        "NVFP4 W4A4, no input scale": 306
    }
    rows = {(row["a"], row["b"]): row["kinds"] for row in data["layers_that_differ"]}
    kinds = rows["scaled FP8 W8A16", "NVFP4 W4A4, no input scale"]
    assert {
        "kind": "blocks.*.cross_attn.k",
        "layers": 30,
        "stored": "F8_E4M3 [3072, 3072] -> U8 [3072, 1536]",
    } in kinds
    # 2. base precision
    for role in ("biases", "norms", "modulation"):
        assert a["not_quantised"][role].keys() == {"F32"}
        assert b["not_quantised"][role].keys() == {"F16"}
        assert sum(a["not_quantised"][role].values()) == sum(b["not_quantised"][role].values())
    # 3. naming
    assert a["naming"] == {".scale_weight": 300, "scaled_fp8, 2 elements": 1}
    assert b["naming"] == {
        ".weight_scale": 306,
        ".weight_scale_2": 306,
        "layers in _quantization_metadata": 306,
    }
    found = {row["kind"]: (row["tensors"], row["stored"]) for row in data["tensors_that_differ"]}
    assert found["blocks.*.ffn.0.bias"] == (30, "F32 [14336] -> F16 [14336]")
    assert sum(count for count, _ in found.values()) == 1126 - 306 - 301
    assert data["only_in_a"] == {"*.scale_weight": 300, "scaled_fp8": 1}
    assert data["only_in_b"] == {"*.weight_scale": 306, "*.weight_scale_2": 306}


def test_the_documented_pair_gets_a_verdict_and_a_way_out(documented, capsys):
    status, text = run(*documented, "--exit-code", capsys=capsys)
    assert status == 1
    working, noisy, differ, *rest = text.splitlines()
    assert working.startswith("A: working.safetensors (1,126 tensors, 5.28 GB) ")
    assert " loads as it should; needs ComfyUI 0.10 or newer" in working
    assert noisy.startswith("B: noisy.safetensors (1,437 tensors, ")
    assert " loads; expect noise or black frames; defects: 1, see below; needs " in noisy
    assert differ.startswith("A and B differ: 306 of 306 linear layers are stored or multiplied ")
    assert differ.endswith("; 301 tensors are only in A; 612 tensors are only in B")
    text = "\n".join(rest)
    assert "warning: B: 100 % of the linear weights are NVFP4, which gave noise on Wan" in text
    assert "hint: B: 306 W4A4 layers have no input scale" in text
    assert "hint: B: biases, norms, modulation are float16, where working files keep" in text
    assert "--recipe scaled-fp8" in text
    assert len(text.splitlines()) < 120


@pytest.mark.parametrize(("experts", "is_noisy"), [(None, True), ((64, 128, 64), False)])
def test_banks_of_experts_count_among_the_linear_weights(experts, is_noisy, tmp_path, capsys):
    tensors = {f"blocks.{i}.q.{k}": p for i in range(4) for k, p in NVFP4.parts((256, 64)).items()}
    if experts:
        tensors |= {f"blocks.{i}.moe.experts.gate_up_proj": ("BF16", experts) for i in range(4)}
    layers = {f"blocks.{i}.q": {"format": "nvfp4"} for i in range(4)}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    tensors = dict(sorted(tensors.items(), key=by_size))
    path = header_only(tmp_path / "m.safetensors", tensors, metadata)
    _, text = run(path, capsys=capsys)
    assert ("of the linear weights are NVFP4, which gave noise" in text) == is_noisy


def test_the_recipe_makes_the_working_structure(documented, tmp_path, capsys):
    """--recipe scaled-fp8 of the 5B model: the working file's 1,126 tensors, to the dtype."""
    shapes, kinds = wan_shapes("5b"), tmp_path / "m.gguf"
    write_gguf(kinds, shapes)
    source = header_only(
        tmp_path / "m.safetensors", {name: ("F32", shape) for name, shape in shapes.items()}, {}
    )
    options = Options(source=source, output="o.safetensors", gguf=kinds, recipe="scaled-fp8")
    model = open_model(source)
    plans, _ = make_plans(options, model, read_guides(options, model))
    (layout,) = make_job(options, model, plans).layouts.values()
    made = header_only(
        tmp_path / "made.safetensors", {n: (s.dtype, s.shape) for n, s in layout.slots.items()}, {}
    )
    assert run(documented[0], made, "--exit-code", capsys=capsys)[0] == 0


def test_equal_files_and_one_that_differs_in_one_layer(converted, tmp_path, capsys):
    status, text = run(converted, converted, "--exit-code", capsys=capsys)
    assert (status, text.count("\n")) == (0, 2)
    assert text.endswith("A and B are the same file\n")
    copy = shutil.copy(converted, tmp_path / "copy.safetensors")
    status, text = run(converted, copy, "--exit-code", capsys=capsys)
    assert (status, text.count("\n")) == (0, 3)
    assert "have the same structure and the same metadata (values were not compared" in text
    text = run(converted, copy, "--values", capsys=capsys)[1]
    assert text.endswith("the same metadata (all 86 decoded weights are equal)\n")
    write_case("the_tensor_says_something_else", converted, tmp_path / "o.safetensors")
    tensors = load_file(converted)
    tensors["blocks.0.norm3.weight"] = tensors["blocks.0.norm3.weight"].half()
    save_file(tensors, tmp_path / "half.safetensors", read_header(converted)[1])
    other = tmp_path / "half.safetensors"
    assert run(converted, other, capsys=capsys)[0] == 0
    status, data = data_of(converted, other, "--exit-code", capsys=capsys)
    assert (status, data["same_structure"]) == (1, False)
    assert data["layers_that_differ"] == []
    assert data["b"]["not_quantised"]["norms"] == {"F32": 47, "F16": 1}


def test_a_prefix_makes_no_difference(converted, tmp_path, capsys):
    prefix = "model.diffusion_model."
    metadata = json.loads(read_header(converted)[1]["_quantization_metadata"])
    metadata["layers"] = {prefix + name: config for name, config in metadata["layers"].items()}
    tensors = {prefix + name: tensor for name, tensor in load_file(converted).items()}
    path = tmp_path / "o.safetensors"
    save_file(tensors, path, {"_quantization_metadata": json.dumps(metadata)})
    assert run(converted, path, "--exit-code", capsys=capsys)[0] == 0


# Defects that only values show: this program reads headers alone.
BY_VALUE = ("bad scale", "padding", "unscaled")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_ends_as_its_defect_does(name, converted, tmp_path, capsys):
    """Headers alone: values are for --verify, so defects of values are not seen."""
    path = write_case(name, converted, tmp_path / "broken.safetensors")
    status, data = data_of(path, "--exit-code", capsys=capsys)
    defect = DEFECTS[CASES[name][0]]
    assert status == (data["verdict"]["outcome"] != "LOADS")
    if CASES[name][0] not in BY_VALUE:
        assert defect.what in [found["what"] for found in data["verdict"]["defects"]]
        assert Outcome[data["verdict"]["outcome"]] >= defect.outcome


def test_a_sound_files_verdict_tells_how_its_layers_run(converted, capsys):
    _, data = data_of(converted, capsys=capsys)
    assert data["verdict"]["outcome"] == "LOADS"
    assert {label: run["layers"] for label, run in data["verdict"]["runs"].items()} == {
        "NVFP4 W4A16": 19,
        "NVFP4 W4A4, input scale": 9,
        "FP8 W8A16": 12,
    }


def test_the_inventory_lists_every_layer_and_totals(converted, capsys):
    _, text = run(converted, "--layers", capsys=capsys)
    assert "  blocks.3.ffn.0         [512, 256]   NVFP4 W4A" in text
    assert "  blocks.*.ffn.2         FP8 W8A16                4  0.52 MB" in text
    _, text = run(converted, capsys=capsys)
    assert "blocks.3.ffn.0" not in text
    assert "hint: --layers lists every linear layer" in text
    _, data = data_of(converted, capsys=capsys)
    assert len(data["layers"]) == 86
    stored = load_file(converted)
    for layer in data["layers"]:
        parts = [t for name, t in stored.items() if name.rpartition(".")[0] == layer["name"]]
        bias = stored.get(f"{layer['name']}.bias")
        size = sum(part.nbytes for part in parts) - (0 if bias is None else bias.nbytes)
        assert layer["bytes"] == size
    assert sum(found["layers"] for found in data["schemes"].values()) == 86


def test_a_pattern_chooses_layers(converted, capsys):
    _, data = data_of(converted, "--pattern", r"\.ffn\.2$", capsys=capsys)
    assert {layer["name"] for layer in data["layers"]} == {f"blocks.{i}.ffn.2" for i in range(8)}
    assert data["kinds"].keys() == {"blocks.*.ffn.2"}


def test_shards_and_ggufs_are_sides_too(tiny, converted, capsys):
    status, data = data_of(tiny, tiny / "model.gguf", "--exit-code", capsys=capsys)
    assert status == 1
    assert data["b"]["schemes"].keys() == {"Q5_K", "Q6_K", "F16"}
    assert data["only_in_a"] == data["only_in_b"] == {}
    assert "takes one file, not shards" in data["a"]["verdict"]["advice"][0]
    assert "ComfyUI-GGUF" in data["b"]["verdict"]["ending"]
    rows = {(row["a"], row["b"]): row["layers"] for row in data["layers_that_differ"]}
    assert rows == {("F32", "F16"): 6, ("F32", "Q5_K"): 56, ("F32", "Q6_K"): 24}
    assert data_of(tiny / "model.gguf", converted, capsys=capsys)[0] == 0


def test_values_measure_b_against_a(tiny, tmp_path, capsys):
    out, expected = convert_and_measure(tiny, tmp_path / "o.safetensors")
    capsys.readouterr()
    _, data = data_of(tiny, out, "--values", capsys=capsys)
    assert len(data["relative_rmse"]) == 86
    found = {name: data["relative_rmse"][name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-4)
    _, text = run(tiny, out, "--values", capsys=capsys)
    worst = max(expected, key=expected.get)
    assert f"relative RMSE, worst layers\n  {worst}" in text


def test_values_of_a_quantised_gguf(tmp_path, capsys):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch="wan")
    kind = gguf.GGMLQuantizationType.Q8_0
    codes = gguf.quants.quantize(weight.numpy(), kind)
    writer.add_tensor("x.weight", codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = tmp_path / "m.safetensors", tmp_path / "m.gguf"
    _, data = data_of(*files, "--values", capsys=capsys)
    decoded = torch.from_numpy(gguf.quants.dequantize(codes, kind).astype(np.float32))
    expected = float((decoded - weight).norm() / weight.norm())
    assert 0 < expected < 0.01
    assert data["relative_rmse"] == {"x": pytest.approx(expected, rel=1e-4)}


@pytest.mark.parametrize("name", ["absent.safetensors", "broken.gguf", "text.safetensors"])
def test_an_unreadable_file_exits_with_1(name, converted, tmp_path, capsys):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "text.safetensors").write_text("no model", encoding="utf-8")
    assert compare_models([str(converted), str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_values_need_two_sides(converted, capsys):
    with pytest.raises(SystemExit) as stop:
        compare_models([str(converted), "--values"])
    assert stop.value.code == 2
    assert "--values needs B" in capsys.readouterr().err


def test_headers_are_all_that_is_read(documented, capsys):
    """The pair has 8 GB of holes: decoding them would take long, and scales of 0 be defects."""
    _, data = data_of(*documented, capsys=capsys)
    assert data["a"]["verdict"]["defects"] == []
    found = [defect["what"] for defect in data["b"]["verdict"]["defects"]]
    assert found == [DEFECTS[key].what for key in ("output layer", "one form")]


@pytest.mark.parametrize("named", ["m-00001-of-00002.safetensors", "first.safetensors"])
def test_one_shard_of_several_is_no_sound_model(named, tmp_path, capsys):
    save_file({"blocks.0.x.weight": torch.ones(32, 32)}, tmp_path / named)
    if named == "first.safetensors":
        shards = {"blocks.0.x.weight": named, "blocks.1.x.weight": "second.safetensors"}
        index = {"weight_map": shards}
        (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    found = data_of(tmp_path / named, capsys=capsys)[1]["verdict"]
    assert found["ending"] == "is one shard of several, not a whole model"
    assert found["outcome"] == "FAILS"
    assert "or the folder" in found["advice"][0]


def test_no_line_is_wider_than_the_terminal(documented, converted, capsys, monkeypatch):
    all_kinds = [documented, documented[1:], (documented[0], converted), (converted,)]
    for width, pairs in ((80, all_kinds), (120, all_kinds[:1])):
        monkeypatch.setenv("COLUMNS", str(width))
        for files in pairs:
            _, text = run(*files, capsys=capsys)
            assert max(map(len, text.splitlines())) <= width


def test_a_cell_that_is_too_wide_loses_its_middle():
    found = Table("t", [("blocks.0.a_very_long_name_of_a_layer.q", "5"), ("x", "1,000")])
    lines = table_lines(found, 30)
    assert lines == ["", "t", "  blocks...of_a_layer.q      5", "  x                      1,000"]
    assert broken("  a b c", 5) == ["  a b", "    c"]
