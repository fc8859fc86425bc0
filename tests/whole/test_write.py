"""Layout, encoding and publishing: the bytes of the output, and what a failure leaves behind."""

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import sys
from pathlib import Path

import comfy_kitchen
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import RECIPE, convert_tiny

CONFIGS = (
    {"format": "nvfp4"},
    {"format": "nvfp4", "full_precision_matrix_mult": True},
    {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
)


@pytest.fixture(scope="module")
def stored(converted):
    return load_file(converted)


@pytest.fixture(scope="module")
def source(tiny):
    tensors = {}
    for shard in tiny.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


def config(stored, layer):
    return json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist()))


def quantised(stored):
    names = (name for name in stored if name.endswith(".comfy_quant"))
    return [name.removesuffix(".comfy_quant") for name in names]


def test_both_metadata_forms_say_the_same(converted, stored):
    with safe_open(converted, "pt") as file:
        metadata = file.metadata()
    found = json.loads(metadata["_quantization_metadata"])
    assert found["format_version"] == "1.0"
    assert found["layers"] == {layer: config(stored, layer) for layer in quantised(stored)}
    assert {json.dumps(value) for value in found["layers"].values()} == {
        json.dumps(value) for value in CONFIGS
    }


def test_the_header_tells_how_the_file_was_made(converted, tiny):
    with safe_open(converted, "pt") as file:
        recipe = json.loads(file.metadata()["convert_nvfp4"])
    assert recipe["version"] == c.__version__
    assert recipe["options"]["gguf"] == "model.gguf"
    assert recipe["options"]["input_scale_summary_multiplier"] == 1.08
    shards = {path.name: path.stat().st_size for path in tiny.glob("*.safetensors*")}
    assert recipe["sources"] == shards
    assert recipe["plan"] == {"FP32": 145, "FP8": 12, "HALF": 46, "NVFP4": 28}
    assert str(tiny.parent) not in json.dumps(recipe)


def test_nvfp4_layers_are_what_comfy_kitchen_makes_of_them(converted_amax, source):
    stored = load_file(converted_amax)
    layers = [name for name in quantised(stored) if config(stored, name)["format"] == "nvfp4"]
    assert len(layers) == 28
    for layer in layers:
        weight, scale = source[f"{layer}.weight"], stored[f"{layer}.weight_scale_2"]
        assert scale.dtype == torch.float32
        assert scale.shape == ()
        assert scale == weight.abs().max() / (448 * 6)
        packed, block_scale = comfy_kitchen.quantize_nvfp4(weight, scale)
        assert torch.equal(packed, stored[f"{layer}.weight"])
        found = stored[f"{layer}.weight_scale"]
        assert torch.equal(block_scale.view(torch.uint8), found.view(torch.uint8))


def test_the_search_is_nearer_in_every_layer_and_as_big(converted, converted_amax, source):
    """Both files decoded by comfy_kitchen, which knows nothing of how scales were chosen."""
    files = [load_file(path).items() for path in (converted, converted_amax)]
    shapes, amax_shapes = ({name: (t.dtype, t.shape) for name, t in file} for file in files)
    assert shapes == amax_shapes
    errors = []
    for path in (converted, converted_amax):
        stored = load_file(path)
        layers = [name for name in quantised(stored) if config(stored, name)["format"] == "nvfp4"]
        errors.append({layer: squared_error(stored, source, layer) for layer in layers})
    ratios = [errors[0][layer] / errors[1][layer] for layer in errors[0]]
    assert len(ratios) == 28
    assert max(ratios) < 0.92  # its outlier channels are exact under amax, too


def squared_error(stored, source, layer):
    parts = (f"{layer}.weight", f"{layer}.weight_scale_2", f"{layer}.weight_scale")
    decoded = comfy_kitchen.dequantize_nvfp4(*(stored[part] for part in parts), torch.float32)
    return float((decoded - source[f"{layer}.weight"]).square().sum())


def test_the_reports_error_is_that_of_the_decoded_file(tiny, source, tmp_path):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    convert_tiny(tiny, out, "--report", str(report))
    stored, data = load_file(out), json.loads(report.read_text())
    assert data["output_bytes"] == out.stat().st_size
    assert [row["name"] for row in data["tensors"]] == list(c.open_model(tiny).tensors)
    rows = [row for row in data["tensors"] if row["precision"] == "NVFP4"]
    assert len(rows) == 28
    for row in rows:
        layer = row["name"].removesuffix(".weight")
        energy = float(source[row["name"]].square().sum())
        expected = (squared_error(stored, source, layer) / energy) ** 0.5
        assert row["relative_rmse"] == pytest.approx(expected, rel=1e-4)
        assert row["sqnr_db"] == pytest.approx(-20 * math.log10(expected), abs=1e-3)
        assert row["input_scale"] == pytest.approx(float(stored[f"{layer}.input_scale"]))
    fp8 = next(row for row in data["tensors"] if row["precision"] == "FP8")
    assert 0 < fp8["relative_rmse"] < 0.04


def test_a_better_global_scale_is_found_for_blocks_in_e4m3s_subnormals(tmp_path):
    """Rows of very different size leave many blocks few block-scale values to choose from."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(512, 512, generator=generator)
    weight *= torch.exp(4 * torch.randn(512, 1, generator=generator))
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    assert c.main([str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]) == 0
    found, plain = load_file(out)["x.weight_scale_2"], weight.abs().max() / 2688
    assert found in [plain * (448 / largest) for largest in c.OTHER_LARGEST_SCALES]
    plain_error, error = (
        c.measure(weight, c.decode_nvfp4(*c.encode_nvfp4(weight, s, c.mse_block_scales), s)).error
        for s in (plain, found)
    )
    assert error < plain_error


def test_fp8_layers_are_what_comfy_kitchen_makes_of_them(stored, source):
    layers = [name for name in quantised(stored) if "float8" in config(stored, name)["format"]]
    assert len(layers) == 12
    for layer in layers:
        weight, scale = source[f"{layer}.weight"], stored[f"{layer}.weight_scale"]
        expected = comfy_kitchen.quantize_per_tensor_fp8(weight, scale)
        found = stored[f"{layer}.weight"]
        assert torch.equal(expected.view(torch.uint8), found.view(torch.uint8))


def test_all_other_tensors_are_cast_or_kept(stored, source):
    others = [name for name in source if name.removesuffix(".weight") not in quantised(stored)]
    assert {stored[name].dtype for name in others} == {torch.float16, torch.float32}
    for name in others:
        assert torch.equal(stored[name], source[name].to(stored[name].dtype))
        assert stored[name].dtype == torch.float32 or name.endswith(".weight")


def test_no_tensor_is_lost_or_invented(stored, source):
    scales = (".weight_scale", ".weight_scale_2", ".input_scale", ".comfy_quant")
    assert {name for name in stored if not name.endswith(scales)} == set(source)


def test_every_tensor_starts_at_a_multiple_of_its_item_size(converted):
    tensors, _ = c.read_header(converted)
    ends = [name for name in tensors if name.endswith(".comfy_quant")]
    assert list(tensors)[-len(ends) :] == sorted(ends)
    for ref in tensors.values():
        assert ref.begin % (c.SAFETENSORS_BITS[ref.dtype] // 8) == 0


def test_the_file_is_the_one_the_safetensors_library_writes(tmp_path):
    tensors = {
        "z": torch.arange(6.0).view(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "ä": torch.tensor(2.0),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    model = c.open_model(tmp_path / "m.safetensors")
    plans = [
        c.TensorPlan(ref=ref, precision=c.KEPT, reason="", dtype=ref.dtype)
        for ref in model.tensors.values()
    ]
    options = c.Options(
        source=tmp_path / "m.safetensors", output=tmp_path / "o.safetensors", quiet=True
    )
    job = c.Job(
        options=options,
        model=model,
        plans=plans,
        origin={},
        layouts={options.output: c.make_layout(plans, model.metadata, {})},
    )
    with c.Journal(options, c.Ranks()) as journal:
        journal.begin(job)
        c.write_model(job, journal, c.Ranks())
    assert options.output.read_bytes() == options.source.read_bytes()


def test_padding_of_rows_and_columns(tmp_path):
    """24 rows without a bias are padded to 32; the block scales to a 128x4 tile."""
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(5))
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    assert c.main([*command, "--include", "x", "--quiet", "--scale-search", "amax"]) == 0
    found = load_file(tmp_path / "o.safetensors")
    packed, block_scale = comfy_kitchen.quantize_nvfp4(
        weight, found["x.weight_scale_2"], pad_16x=True
    )
    assert found["x.weight"].shape == (32, 48)
    assert found["x.weight_scale"].shape == (128, 8)
    assert torch.equal(found["x.weight"], packed)
    assert torch.equal(found["x.weight_scale"].view(torch.uint8), block_scale.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quant_dtype", ["float32", "bfloat16", "float16"])
def test_quant_dtype_is_what_is_quantised(tmp_path, dtype, quant_dtype):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    command += ["--include", "x", "--quiet", "--use-ck-quant", "--quant-dtype", quant_dtype]
    assert c.main(command) == 0
    found = load_file(tmp_path / "o.safetensors")
    cast = weight.to(getattr(torch, quant_dtype))
    packed, _ = comfy_kitchen.quantize_nvfp4(cast, found["x.weight_scale_2"])
    assert torch.equal(found["x.weight"], packed)


def test_a_dry_run_knows_the_exact_size_and_writes_nothing(tiny, converted, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    command = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE, "--dry-run"]
    assert c.main(command) == 0
    assert f"exactly {converted.stat().st_size:,} bytes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_float16_cannot_hold_stays_float32(tmp_path, capsys, dry_run):
    tensors = {
        "x.weight": torch.ones(16, 32),
        "big": torch.tensor([[[1e5]]]),
        "fits": torch.tensor([[[65504.0]]]),
        "endless": torch.tensor([[[float("inf")]]]),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--dtype", "float16"]
    assert c.main([*command, "--quiet", *dry_run]) == 0
    text = capsys.readouterr().out
    assert "note: 1 tensors do not fit float16: big" in text
    if not dry_run:
        found = load_file(out)
        assert found["big"] == tensors["big"]
        assert found["fits"].dtype == found["endless"].dtype == torch.float16
        assert f"exactly {out.stat().st_size:,} bytes" in text


@pytest.mark.parametrize("factor", [1e-42, 1e-38, 1e-30, 1.0, 1e30, 5e37])
@pytest.mark.parametrize("search", ["mse", "amax"])
def test_the_reported_error_holds_for_huge_and_tiny_weights(tmp_path, factor, search):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(7)) * factor
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--include", "x"]
    report = tmp_path / "r.json"
    command += ["--quiet", "--scale-search", search, "--report", str(report)]
    assert c.main(command) == 0
    reported = json.loads(report.read_text())["tensors"][0]["relative_rmse"]
    stored = load_file(tmp_path / "o.safetensors")
    parts = ("x.weight", "x.weight_scale_2", "x.weight_scale")
    decoded = comfy_kitchen.dequantize_nvfp4(*(stored[part] for part in parts), torch.float32)
    exact = weight.double()
    expected = float((decoded.double() - exact).norm() / exact.norm())
    # What 1e-42 leaves of a weight are a few denormals: there decoding itself rounds.
    assert reported == pytest.approx(expected, rel=1e-3 if factor > 1e-40 else 0.5)
    assert expected < (0.11 if factor > 1e-40 else 1.01)


def test_metadata_of_the_source_survives(tmp_path):
    metadata = {"config": '{"a": 1}', "format": "pt"}
    save_file({"x.weight": torch.ones(16, 32)}, tmp_path / "m.safetensors", metadata=metadata)
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    assert c.main([*command, "--include", "x", "--quiet"]) == 0
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert metadata.items() <= file.metadata().items()


# Failures


@pytest.fixture
def simple(tmp_path):
    """A source, and an older output whose bytes must survive every failure."""
    tensors = {"x.weight": torch.ones(16, 32), "y.weight": torch.ones(16, 32)}
    save_file(tensors, tmp_path / "m.safetensors")
    (tmp_path / "o.safetensors").write_bytes(b"older")
    return tmp_path


def run(folder, *arguments, source="m.safetensors", output="o.safetensors"):
    include = ("--include", "x", "--quiet")
    return c.main([str(folder / source), str(folder / output), *include, *arguments])


def assert_untouched(folder):
    assert (folder / "o.safetensors").read_bytes() == b"older"
    assert not list(folder.glob("*.partial*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(simple, capsys, bad):
    weight = torch.ones(16, 32)
    weight[7, 9] = bad
    save_file({"x.weight": weight}, simple / "m.safetensors")
    assert run(simple) == 1
    error = capsys.readouterr().err
    assert "m.safetensors: x.weight holds NaN or Inf: the file is damaged" in error
    assert error.count("\n") == 1
    assert_untouched(simple)


def test_a_full_disk_leaves_the_older_file(simple, capsys, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:  # the first one is the journal's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(simple) == 1
    assert "o.safetensors.partial: No space left on device" in capsys.readouterr().err
    assert_untouched(simple)


def test_a_disk_that_is_full_at_the_header_leaves_the_older_file(simple, capsys):
    """The limit on file sizes stands in for the full disk: a real error from a real write."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    weights = {f"{'x' * 200}{index}.weight": torch.ones(16, 32) for index in range(60)}
    save_file(weights, simple / "m.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        status = run(simple)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    assert "o.safetensors.partial: File too large" in capsys.readouterr().err
    assert_untouched(simple)


def test_a_folder_that_cannot_be_synced_is_no_failure(simple, monkeypatch):
    calls = []

    def refuse_folders(descriptor, fsync=os.fsync):
        calls.append(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert run(simple) == 0
    assert len(calls) == 3  # the journal's head, the file, the folder
    assert (simple / "o.safetensors").stat().st_size > 1000


def test_a_report_that_fails_late_does_not_hide_the_model(simple, capsys, monkeypatch):
    def fail(*_):
        raise c.ConvertError("r.json: cannot write: No space left on device")

    monkeypatch.setattr(c, "write_text", fail)
    assert run(simple, "--report", str(simple / "r.json")) == 1
    printed = capsys.readouterr()
    assert f"exactly {(simple / 'o.safetensors').stat().st_size:,} bytes" in printed.out
    assert printed.err == "error: r.json: cannot write: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX")
def test_a_name_that_is_no_utf8(simple):
    out = os.fsencode(simple) + b"/\xe4.safetensors"
    assert c.main([str(simple / "m.safetensors"), os.fsdecode(out), "--preset", "all"]) == 0
    assert os.stat(out).st_size  # noqa: PTH116


@pytest.mark.parametrize("source", ["o-00001-of-00005.safetensors", "m.safetensors"])
def test_shards_of_widened_tensors_spare_what_is_there(tmp_path, capsys, source):
    """The plan changes on the way, and its files' names with it."""
    weights = {f"blocks.{i}.ffn.0.weight": torch.randn(1024, 1024) for i in range(8)}
    for i in range(4, 8):
        weights[f"blocks.{i}.ffn.0.weight"][0, 0] = 1e6  # beyond float16
    save_file(weights, tmp_path / source)
    index, other = tmp_path / "x.safetensors.index.json", tmp_path / "o-00001-of-00005.safetensors"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, source)}))
    if not other.exists():
        other.write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [
        str(index),
        str(tmp_path / "o.safetensors"),
        "--output-sharded",
        "--dtype",
        "float16",
    ]
    command += ["--max-shard-size", "4500kB", "--preset", "all", "--exclude", "blocks.[4-7]"]
    assert c.main([*command, "--quiet"]) == 1
    told = (
        "is an input of this conversion" if source == other.name else "old and new shards could mix"
    )
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("report", ["missing/r.json", "folder.json", "m.safetensors"])
def test_a_report_that_cannot_be_written_is_known_before_the_work(simple, capsys, report):
    (simple / "folder.json").mkdir()
    if report == "m.safetensors":
        (simple / "link.json").symlink_to(simple / report)
        report = "link.json"
    assert run(simple, "--report", str(simple / report)) == 1
    assert str(simple) in capsys.readouterr().err
    assert_untouched(simple)


def test_a_dry_run_tells_what_would_fail(simple, capsys):
    assert run(simple, "--dry-run", output="missing/o.safetensors") == 0
    assert "note: would fail: " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_of_16_bit_sources_is_measured_in_float32(dtype):
    weight = (torch.randn(64, 128, generator=torch.Generator().manual_seed(7)) * 2e-3).to(dtype)
    compute = c.Compute(torch.device("cpu"))
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    encode = c.measured(c.encode_nvfp4, c.decode_nvfp4, torch.float32)
    found = c.encode_rows(weight, scale, encode, compute)
    decoded = c.decode_nvfp4(torch.cat(found.codes), found.by_rows[0], scale)
    expected = float((decoded - weight.float()).norm() / weight.float().norm())
    assert found.damage.relative_rmse == pytest.approx(expected, rel=1e-5)


def test_compiled_and_plain_runs_write_the_same_file(tiny, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    plain = convert_tiny(tiny, tmp_path / "plain.safetensors", "--quiet")
    monkeypatch.setattr(c, "COMPILE_FROM", 0)
    compiled = convert_tiny(tiny, tmp_path / "compiled.safetensors", "--quiet")
    assert plain.read_bytes() == compiled.read_bytes()


def test_without_numba_a_large_run_says_so(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(c, "COMPILE_FROM", 0)
    monkeypatch.setitem(sys.modules, "numba", None)
    convert_tiny(tiny, tmp_path / "o.safetensors", "--quiet")
    assert "note: pip install numba makes this several times faster" in capsys.readouterr().out


def test_too_little_space_is_known_before_the_work(simple, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    monkeypatch.setattr(c, "write_model", None)
    assert run(simple) == 1
    assert "0.00 MB are free, the output needs" in capsys.readouterr().err
    assert_untouched(simple)


def test_ctrl_c_leaves_the_older_file(simple, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(c, "quantise", interrupt)
    assert run(simple) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert_untouched(simple)


def test_a_source_that_shrinks_under_way(simple, capsys, monkeypatch):
    output_problems = c.output_problems

    def shrink(*arguments):
        problems = output_problems(*arguments)
        os.truncate(simple / "m.safetensors", 2000)
        return problems

    monkeypatch.setattr(c, "output_problems", shrink)
    assert run(simple) == 1
    told = f"ended inside x.weight; {c.CHANGED_UNDER_WAY}"
    assert capsys.readouterr().err == f"error: {simple / 'm.safetensors'}: {told}\n"
    assert_untouched(simple)


def rewrite(path):
    """The same size at every moment, other weights: no reader meets a short file."""
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(0, 0))  # a clock of whole seconds could miss the change


def replace(path):
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_source_that_changes_under_way(simple, capsys, monkeypatch, change, resume):
    quantise = c.quantise

    def change_first(*arguments):
        change(simple / "m.safetensors")
        return quantise(*arguments)

    monkeypatch.setattr(c, "quantise", change_first)
    assert run(simple, *resume) == 1
    error = capsys.readouterr().err
    assert error == f"error: {simple / 'm.safetensors'}: {c.CHANGED_UNDER_WAY}\n"
    assert (simple / "o.safetensors").read_bytes() == b"older"
    assert bool(list(simple.glob("*.partial"))) == bool(resume)
    monkeypatch.setattr(c, "quantise", quantise)
    assert run(simple, *resume) == len(resume)
    assert ("m.safetensors changed since, or was another; " in capsys.readouterr().err) == bool(
        resume
    )


def test_a_list_that_changes_under_way_was_read_already(simple, monkeypatch):
    (simple / "layers.txt").write_text("y\n")
    publish = c.PartialFiles.publish
    monkeypatch.setattr(
        c.PartialFiles,
        "publish",
        lambda self: (simple / "layers.txt").write_text("x\n") and publish(self),
    )
    assert run(simple, "--full-precision-mm-layers", str(simple / "layers.txt")) == 0


def test_a_run_whose_files_were_deleted_leaves_the_next_one_alone(simple, capsys, monkeypatch):
    publish, partial = c.PartialFiles.publish, simple / "o.safetensors.partial"
    journal = simple / "o.safetensors.partial.journal"

    def usurp(self):
        for path in (partial, journal):
            path.unlink()
            path.write_bytes(b"another run's")
        publish(self)

    monkeypatch.setattr(c.PartialFiles, "publish", usurp)
    assert run(simple) == 1
    assert capsys.readouterr().err == f"error: {partial}: was deleted meanwhile; run again\n"
    assert (simple / "o.safetensors").read_bytes() == b"older"
    assert partial.read_bytes() == journal.read_bytes() == b"another run's"


def test_a_partial_file_that_may_not_be_deleted(simple, capsys, monkeypatch):
    """As in a folder like /tmp, where it is another user's."""
    partial, unlink = simple / "o.safetensors.partial", type(simple).unlink
    partial.write_bytes(b"")

    def forbid(path, **keywords):
        if path == partial:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, **keywords)

    monkeypatch.setattr(type(simple), "unlink", forbid)
    assert run(simple) == 1
    assert capsys.readouterr().err == f"error: {partial}: Operation not permitted\n"
    assert (simple / "o.safetensors").read_bytes() == b"older"


def test_ctrl_c_after_the_file_got_its_name(simple, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(c, "sync_folder", interrupt)
    assert run(simple) == 130
    out = simple / "o.safetensors"
    assert capsys.readouterr().err == f"interrupted: {out} was complete already\n"
    assert c.main(["--verify", str(out)]) == 0
    assert not list(simple.glob("*.partial*"))


def test_ctrl_c_between_the_names_of_shards(simple, capsys, monkeypatch):
    rename, calls = c.rename, []

    def interrupt(path, name):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rename(path, name)

    big = {f"x.{index}.weight": torch.ones(1024, 1024) for index in range(4)}
    save_file(big, simple / "m.safetensors")
    monkeypatch.setattr(c, "rename", interrupt)
    shards = ("--output-sharded", "--max-shard-size", "1MB")
    assert run(simple, *shards, output="s.safetensors") == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert not list(simple.glob("s*"))


def test_a_partial_file_that_reads_back_wrong_is_not_published(simple, capsys, monkeypatch):
    publish = c.PartialFiles.publish

    def corrupt(self):
        with (simple / "o.safetensors.partial").open("r+b") as file:
            file.seek(9)
            file.write(b"#")
        publish(self)

    monkeypatch.setattr(c.PartialFiles, "publish", corrupt)
    assert run(simple) == 1
    assert "the safetensors header is damaged" in capsys.readouterr().err
    assert_untouched(simple)


# Windows, as far as it can be shown


@pytest.fixture
def like_windows(monkeypatch):
    """What is open can neither be deleted, nor renamed, nor replaced."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd")

    def is_open(path):
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.readlink() == path.absolute():
                    return True
        return False

    def guard(function):
        def guarded(path, *others, **keywords):
            if any(map(is_open, (path, *others))):
                raise PermissionError(errno.EACCES, "is in use", str(path))
            return function(path, *others, **keywords)

        return guarded

    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, guard(getattr(Path, name)))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("like_windows")
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_nothing_is_open_when_it_is_named_or_deleted(simple, monkeypatch, resume):
    assert run(simple, *resume) == 0
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]
    monkeypatch.setattr(c, "verify", None)  # a failure, and no ConvertError
    with pytest.raises(TypeError):
        run(simple)
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]


@pytest.mark.usefixtures("like_windows")
@pytest.mark.parametrize("shards", [[], ["--output-sharded", "--max-shard-size", "1MB"]])
def test_a_float16_overflow_where_open_files_cannot_be_deleted(simple, shards):
    (simple / "o.safetensors").unlink()
    save_file({"x.weight": torch.ones(16, 32), "big": torch.ones(2, 2, 2) * 1e5}, simple / "b.st")
    (simple / "b.st").replace(simple / "m.safetensors")
    assert run(simple, "--dtype", "float16", "--resume", *shards) == 0
    assert not list(simple.glob("*.partial*"))


@pytest.mark.usefixtures("like_windows")
def test_an_older_output_that_is_open_elsewhere(simple, capsys, monkeypatch):
    with (simple / "o.safetensors").open("rb") as reader:
        assert run(simple, "--resume") == 1
        told = f"error: {simple / 'o.safetensors'}: is in use; is it open in another program?\n"
        assert capsys.readouterr().err == told
        assert reader.read() == b"older"
    monkeypatch.setattr(c, "quantise", None)  # nothing is left to do
    assert run(simple, "--resume") == 0
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]


def test_an_output_that_is_an_input_is_refused(simple, capsys):
    before = (simple / "m.safetensors").read_bytes()
    (simple / "link.safetensors").symlink_to(simple / "m.safetensors")
    for name in ("m.safetensors", "link.safetensors"):
        assert run(simple, output=name) == 1
        assert f"{name}: is an input of this conversion" in capsys.readouterr().err
    assert (simple / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/o.safetensors", "missing: no such folder; create it first"),
        ("folder.safetensors", "folder.safetensors: is a folder; name the file to write"),
    ],
)
def test_an_output_that_cannot_be_written(simple, capsys, output, message):
    (simple / "folder.safetensors").mkdir()
    assert run(simple, output=output) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission(simple, capsys):
    simple.chmod(0o500)
    try:
        assert run(simple) == 1
        assert "o.safetensors.partial: Permission denied" in capsys.readouterr().err
    finally:
        simple.chmod(0o700)
    assert_untouched(simple)
