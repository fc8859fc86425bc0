"""--verify: every rule on a file broken in just that way, and decoding against a source."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from nvfp4.compare.entry import compare_models
from support.broken import CASES, Stored, write_case
from support.conversions import convert_and_measure, convert_tiny
from support.files import OLDER, raw_safetensors


def verify(path, *arguments, capsys):
    status = c.main(["--verify", str(path), "--quiet", *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_is_named_for_what_it_is(name, converted, tmp_path, capsys):
    path = write_case(name, converted, tmp_path / "broken.safetensors")
    status, out = verify(path, capsys=capsys)
    defect = c.DEFECTS[CASES[name][0]]
    assert status == int(defect.outcome > c.Outcome.LOADS)
    lines = out.splitlines()
    found = [index for index, line in enumerate(lines) if line.endswith(f" x {defect.what}")]
    assert len(found) == 1
    assert lines[found[0]].split()[0] == defect.outcome.name
    assert lines[found[0] + 1].strip() == f"{defect.consequence}; to do: {defect.remedy}"


def test_the_worst_defect_comes_first(converted, tmp_path, capsys):
    path = write_case("nothing_configured", converted, tmp_path / "broken.safetensors")
    _, out = verify(path, capsys=capsys)
    verdict, *lines = out.splitlines()
    assert verdict == "verdict   2 defects: ComfyUI does not load it, or stops at its first step"
    assert [line.split()[0] for line in lines[:7:3]] == ["FAILS", "WRONG", "to"]
    assert "28 x packed weights" in out
    assert "12 x FP8 weights" in out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mixed", "fp8", "scaled-fp8"])
@pytest.mark.parametrize("marked", [[], ["--fp8-full-precision-mm"]])
def test_what_this_tool_writes_is_sound(recipe, marked, tiny, tmp_path, capsys):
    out = convert_tiny(tiny, tmp_path / "o.safetensors", "--recipe", recipe, *marked, "--quiet")
    capsys.readouterr()
    status, text = verify(out, "--source", tiny, capsys=capsys)
    assert (status, text.partition(":")[0]) == (0, "verdict   no defect found")


def test_a_model_without_quantised_layers_is_sound(tiny, capsys):
    status, text = verify(tiny, capsys=capsys)
    assert status == 0
    assert "layers    nothing is quantised\n" in text


def test_a_tensor_off_its_alignment(tmp_path, capsys):
    entries = {
        "a.comfy": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b.bias": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    path = raw_safetensors(tmp_path / "m.safetensors", entries, bytes(5))
    status, text = verify(path, capsys=capsys)
    assert status == 0
    assert f"LOADS  1 x {c.DEFECTS['unaligned'].what}" in text


@pytest.mark.parametrize(
    ("begin", "data", "message"),
    [(4, 8, "leaves a gap"), (0, 9, "trailing bytes"), (0, 3, "it is cut off")],
)
def test_a_damaged_structure_is_an_error(begin, data, message, tmp_path, capsys):
    entries = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]}}
    path = raw_safetensors(tmp_path / "m.safetensors", entries, bytes(data))
    assert c.main(["--verify", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("; ComfyUI stops while loading it\n")


@pytest.fixture
def sound(converted, tmp_path):
    """A sound file in memory, to be changed, and where to save it."""
    return Stored(converted), tmp_path / "changed.safetensors"


def swap_nibbles(file):
    codes = file.get("weight")
    file.put("weight", (codes << 4) | (codes >> 4))


def leave_unswizzled(file):
    tiles = file.get("weight_scale")
    file.put("weight_scale", c.unswizzle(tiles, *tiles.shape))


def both(file):
    swap_nibbles(file)
    leave_unswizzled(file)


def another_weight(file):
    file.put("weight", file.get("weight").flip(0))


def another_fp8_weight(file):
    file.put("weight", file.get("weight", file.fp8).view(torch.uint8).flip(0).view(
        torch.float8_e4m3fn), file.fp8)  # fmt: skip


def another_norm(file):
    file.put("weight", file.get("weight", "blocks.0.norm3") * 1.1, "blocks.0.norm3")


@pytest.mark.parametrize(
    "case",
    [
        (swap_nibbles, "(packed with the even column in the low nibble)"),
        (leave_unswizzled, "(block scales not swizzled)"),
        (both, "(even column in the low nibble, block scales not swizzled)"),
        (another_weight, "(no other order of its codes and scales explains it)"),
        (another_fp8_weight, "(its scale or codes are of another weight)"),
        (another_norm, "blocks.0.norm3 (relative RMSE 0.1)"),
    ],
)
def test_with_the_source_wrong_values_are_found_and_explained(case, sound, tiny, capsys):
    (change, detail), (file, path) = case, sound
    change(file)
    file.save(path)
    assert verify(path, capsys=capsys)[0] == 0
    status, text = verify(path, "--source", tiny, capsys=capsys)
    assert status == 1
    defect = c.DEFECTS["near" if change is another_norm else "values"]
    assert f"  {defect.outcome.name}  1 x {defect.what}\n" in text
    assert ("noise" in text.replace("no noise", "")) == (change is not another_norm)
    assert detail in text


def changed_source(tiny, path, change):
    """Another model of the tiny one's names."""
    tensors = {}
    for shard in sorted(tiny.glob("*.safetensors")):
        tensors |= load_file(shard)
    save_file({name: change(tensor) for name, tensor in tensors.items()}, path)
    return path, len(tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7)),
        lambda tensor: torch.ones(*tensor.shape[:-1], tensor.shape[-1] + 16),
    ],
    ids=["values", "shapes"],
)
def test_a_source_of_another_model_in_the_same_names(change, converted, tiny, tmp_path, capsys):
    source, count = changed_source(tiny, tmp_path / "s.safetensors", change)
    status, text = verify(converted, "--source", source, capsys=capsys)
    assert status == 1
    assert "  WRONG  1 x the file given as --source is of another model\n" in text
    assert f"         {count} of {count} tensors differ\n" in text
    assert "convert" not in text
    assert "noise" not in text


def test_a_source_that_is_a_little_off_asks_for_the_lora(converted, tiny, tmp_path, capsys):
    source, _ = changed_source(tiny, tmp_path / "s.safetensors", lambda tensor: tensor * 1.03)
    status, text = verify(converted, "--source", source, capsys=capsys)
    assert status == 1
    assert " x tensors are a little off from what the source holds\n" in text
    assert "(relative RMSE 0.029)" in text
    assert "give --merge-lora" in text
    assert "noise" not in text.replace("no noise", "")


def test_only_packed_layers_that_are_all_off_are_no_other_model():
    found = [c.Finding(defect="values", name=str(number)) for number in range(9)]
    assert c.other_source(found, 9, 0) is None
    assert c.other_source(found, 9, 9).name == "9 of 9 tensors differ"
    assert c.other_source(found, 20, 9) is None
    lost = [c.Finding(defect=defect, name="x") for defect in ("missing", "extra")] * 8
    assert "8 of these are not in the file" in c.other_source([*lost, *found[:1]], 9, 0).name
    assert c.other_source([*lost[::2], *found[:1]], 9, 1) is None


def test_what_was_never_converted_is_not_converted_again(tmp_path, capsys):
    save_file(
        {"transformer.module.blocks.0.x.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors"
    )
    status, text = verify(tmp_path / "m.safetensors", capsys=capsys)
    assert (status, "nothing is quantised" in text) == (1, True)
    assert "to have none of these" not in text


def test_with_the_source_missing_tensors_and_other_shapes_are_found(sound, tiny, capsys):
    file, path = sound
    file.drop("modulation", "blocks.1")
    file.put("weight", torch.zeros(128, 256), "blocks.0.ffn.0")
    status, text = verify(file.save(path), "--source", tiny, capsys=capsys)
    assert status == 1
    assert f"1 x {c.DEFECTS['missing'].what}" in text
    assert "blocks.1.modulation" in text
    assert "blocks.0.ffn.0 ([128, 256] for the source's [512, 256])" in text


def test_the_error_with_the_source_is_that_of_the_conversion(tiny, tmp_path):
    again, expected = convert_and_measure(tiny, tmp_path / "again.safetensors")
    check = c.verify_file(c.Verification(file=again, source=tiny, quiet=True))
    found = {layer: damage.relative_rmse for layer, damage in check.damage.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(found) == 40


@pytest.mark.parametrize("scale", [1e30, 1e-30, float("nan"), 0.0])
def test_with_the_source_a_wrong_scale_of_any_size_is_found(scale, sound, tiny, capsys):
    file, path = sound
    file.put("weight_scale_2", torch.tensor(scale))
    status, text = verify(file.save(path), "--source", tiny, capsys=capsys)
    assert status == 1
    assert f"WRONG  1 x {c.DEFECTS['values'].what}\n" in text
    assert "errors    1 of 40 layers stands out from what is usual for their format:\n" in text
    assert f"  {file.nvfp4} (NVFP4, usual 0.082)\n" in text


def test_a_weight_of_zeros_that_became_something_is_found(tmp_path, capsys):
    weight = {"x.weight": torch.ones(32, 32)}
    save_file(weight, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]
    assert c.main(command) == 0
    save_file({"x.weight": torch.zeros(32, 32)}, tmp_path / "m.safetensors")
    assert verify(out, "--source", tmp_path / "m.safetensors", capsys=capsys)[0] == 1


def test_what_the_source_cannot_tell_about_is_named(sound, tiny, capsys):
    file, path = sound
    file.tensors["blocks.8.norm3.weight"] = torch.ones(256)
    _, text = verify(file.save(path), "--source", tiny, capsys=capsys)
    assert f"LOADS  1 x {c.DEFECTS['extra'].what}" in text
    assert c.main(["--verify", str(path), "--source", str(path)]) == 0


def test_scales_that_are_not_decoded_are_named_and_not_passed(sound, tiny, capsys):
    file, path = sound
    file.put("weight_scale", file.get("weight_scale", file.fp8).repeat(255), file.fp8)
    status, text = verify(file.save(path), "--source", tiny, capsys=capsys)
    assert status == 1
    assert f"{file.fp8} (not measured: its scale is F32 [255] for a weight [" in text


def test_flat_scales_of_rows_are_taken_for_columns_by_comfyui(sound, tiny, capsys):
    file, path = sound
    file.put("weight_scale", file.get("weight_scale", file.fp8).repeat(256), file.fp8)
    status, text = verify(file.save(path), "--source", tiny, capsys=capsys)
    assert status == 1
    assert f"{file.fp8} (weight_scale F32 [256])" in text
    assert c.DEFECTS["per row"].what not in text


@pytest.mark.parametrize(("prefix", "defect"), [("diffusion_model.", "prefix"), ("", None)])
def test_a_prefix_that_comfyui_does_not_know(prefix, defect, tmp_path, capsys):
    save_file({f"{prefix}blocks.0.x.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    status, text = verify(tmp_path / "m.safetensors", capsys=capsys)
    assert status == int(defect is not None)
    assert (c.DEFECTS["prefix"].what in text) == (defect is not None)


def test_a_file_without_tensors(tmp_path, capsys):
    path = raw_safetensors(tmp_path / "m.safetensors", {}, b"")
    status, text = verify(path, capsys=capsys)
    assert status == 1
    assert c.DEFECTS["empty"].what in text


def odd_files():
    """Layers that no rule has a case for; they are to be judged, whatever the judgement."""
    byte, weight = torch.uint8, torch.ones(32, 32)
    fp8 = weight.to(torch.float8_e4m3fn)
    conf = {name: torch.tensor(list(text.encode()), dtype=byte) for name, text in {
        "mxfp8": '{"format": "mxfp8"}', "int8": '{"format": "int8_tensorwise"}',
        "nvfp4": '{"format": "nvfp4"}', "list": "[1]"}.items()}  # fmt: skip
    marker = {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}
    scales = {"x.weight_scale": torch.ones(32, 1, dtype=byte), "x.weight_scale_2": torch.ones(())}
    return {
        "mxfp8": {"x.weight": fp8, "x.weight_scale": scales["x.weight_scale"],
                  "x.comfy_quant": conf["mxfp8"]},
        "int8": {"x.weight": weight.to(torch.int8), "x.weight_scale": torch.ones(32, 1),
                 "x.comfy_quant": conf["int8"]},
        "empty packed": {"x.weight": torch.zeros(64, 0, dtype=byte), **scales,
                         "x.comfy_quant": conf["nvfp4"]},
        "3-D": {"x.weight": torch.zeros(2, 16, 16, dtype=byte), **scales,
                "x.comfy_quant": conf["nvfp4"]},
        "scale in float64": {"x.weight": fp8, "x.scale_weight": torch.ones(1),
                             "x.scale_input": torch.ones(1).double(), **marker},
        "scale in FP8": {"x.weight": fp8, "x.scale_weight": torch.ones(1),
                         "x.scale_input": torch.ones(1).to(fp8.dtype), **marker},
        "scales per row": {"x.weight": fp8, "x.scale_weight": torch.ones(32)},
        "configuration is a list": {"x.weight": fp8, "x.comfy_quant": conf["list"]},
        "large configuration": {"x.weight": fp8, "x.comfy_quant": torch.zeros(1 << 20, dtype=byte)},
        "scalar weight": {"x.weight": torch.ones(()), "x.weight_scale": torch.ones(())},
        "no tensor of the layer but a scale": {"x.weight_scale_2": torch.ones(())},
        "float64": {"x.weight": weight.double()},
        "long number": {f"blocks.{'1' * 5000}.x.weight": weight},
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_files())
def test_odd_layers_are_judged_and_compared(name, tmp_path, capsys):
    path, source = tmp_path / "odd.safetensors", tmp_path / "m.safetensors"
    save_file(odd_files()[name], path)
    save_file({"x.weight": torch.ones(32, 32)}, source)
    assert c.main(["--verify", str(path)]) in (0, 1)
    if "x.weight" in odd_files()[name]:
        assert c.main(["--verify", str(path), "--source", str(source), "--quiet"]) in (0, 1)
    assert compare_models([str(source), str(path), "--values"]) == 0
    assert compare_models([str(path), "--json"]) == 0
    json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(["{", ""]))


def test_a_source_of_another_model(converted, tmp_path, capsys):
    save_file({"x.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    task = ["--verify", str(converted), "--source", str(tmp_path / "x.safetensors")]
    assert c.main(task) == 1
    assert "x.safetensors: is of another model: no tensor is in " in capsys.readouterr().err


def test_a_defect_of_a_conversion_keeps_it_from_being_published(
    tiny, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "o.safetensors"
    out.write_bytes(OLDER)
    swizzle = c.swizzle
    monkeypatch.setattr(c, "swizzle", lambda scales: swizzle(scales).view(torch.uint8).fill_(0x7F))
    assert (
        c.main(
            [str(tiny), str(out), "--preset", "none", "--include", r"blocks\.3\.ffn\.0", "--quiet"]
        )
        == 1
    )
    assert "o.safetensors.partial: scales are NaN" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLDER]


def test_legacy_files_need_input_scales_only_for_fp8_matmul(tiny, tmp_path, capsys):
    value = ["--input-scale-value", "1e-3"]
    base = [str(tiny), str(tmp_path / "o.safetensors"), "--include", r"blocks\.3\.", "--quiet"]
    base += ["--preset", "none"]
    assert c.main([*base, "--recipe", "scaled-fp8", *value]) == 0
    stored = load_file(tmp_path / "o.safetensors")
    assert stored["scaled_fp8"].shape == (0,)
    capsys.readouterr()
    assert verify(tmp_path / "o.safetensors", capsys=capsys)[0] == 0
