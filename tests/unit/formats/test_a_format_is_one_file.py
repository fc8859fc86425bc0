"""A new format is a new file in nvfp4/formats/, and no other file changes."""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.formats.base import Format, format_titled, readable_formats, written_formats
from support.paths import ROOT

pytestmark = pytest.mark.slow

ROWS = [*Format.rows]
CONFIG = {r"blocks\.\d\.a": {"format": "toy_int8"}, "outside": {"format": "bfloat16"}}


def run(folder: Path, script: str, *arguments: object, status: int = 0) -> str:
    """Run a script in a process that has none of the project's modules yet; what is on stdout."""
    command = [sys.executable, str(folder / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == status, done.stderr
    return done.stdout


def run_built(folder: Path, *arguments: object, status: int = 0) -> str:
    """Run the single file, which is a module of its own here; what is on stdout and stderr."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert built(folder).main([*map(str, arguments)]) == status, printed.getvalue()
    return printed.getvalue()


@functools.cache
def built(folder: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("built_with_toy", folder / "convert_nvfp4.py")
    sys.modules[found.name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The package with one more file, and the single file that is built from it."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "nvfp4", folder / "nvfp4")
    for name in ("tools/single_file.py", "requirements.txt", "compare_models.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(Path(__file__).with_name("toy.py"), folder / "nvfp4/formats/toy.py")
    run(folder, "tools/single_file.py")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "m.safetensors"
    generator = torch.Generator().manual_seed(0)
    layers = [f"blocks.{block}.{name}" for block in range(4) for name in ("a", "b")]
    layers.append("outside")
    state = {f"{layer}.weight": torch.randn(48, 64, generator=generator) for layer in layers}
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def converted(house, source):
    """Four layers in the new format, the other four in NVFP4; and the report."""
    config = source.with_name("config.json")
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    out, report = source.with_name("o.safetensors"), source.with_name("report.json")
    text = run_built(
        house, source, out, "--preset", "all", "--layer-config", config,
        "--report", report, "--layer-config-out", source.with_name("again.json"), "--quiet",
    )  # fmt: skip
    return out, text, json.loads(report.read_text(encoding="utf-8"))


def test_a_layer_config_can_ask_for_it(converted, source):
    out, text, report = converted
    stored, original = load_file(out), load_file(source)
    codes, scales = stored["blocks.2.a.weight"], stored["blocks.2.a.toy_scale"]
    assert (codes.dtype, scales.shape) == (torch.int8, (48, 1))
    error = codes.float() * scales - original["blocks.2.a.weight"].float()
    assert float(error.norm() / original["blocks.2.a.weight"].float().norm()) < 0.01
    assert json.loads(bytes(stored["blocks.2.a.comfy_quant"].tolist())) == {"format": "toy_int8"}
    assert "TOY8" in text
    assert report["totals"]["TOY8"]["layers"] == report["totals"]["NVFP4"]["layers"] == 4
    assert report["matmuls"]["W8A8"] == {"layers": 4, "share": pytest.approx(4 / 9)}
    again = json.loads(source.with_name("again.json").read_text(encoding="utf-8"))
    assert again["blocks.2.a"] == {"format": "toy_int8"}


def test_verify_decodes_it_and_knows_its_defects(house, converted, source, tmp_path):
    out, _, report = converted
    text = run_built(house, "--verify", out, "--source", source, "--quiet")
    assert "layers    4 NVFP4, 4 TOY8\n" in text
    assert "no defect found" in text
    worst = {row["name"]: row.get("relative_rmse") for row in report["tensors"]}
    assert 0 < worst["blocks.2.a.weight"] < 0.01 < worst["blocks.2.b.weight"]
    stored = load_file(out)
    stored["blocks.2.a.toy_scale"][3] = torch.nan
    save_file(stored, tmp_path / "bad.safetensors")
    text = run_built(house, "--verify", tmp_path / "bad.safetensors", status=1)
    assert "scales are NaN, infinite, zero or negative" in text
    for wrong in (stored["blocks.2.a.toy_scale"][:3], stored["blocks.2.a.toy_scale"].half()):
        save_file(stored | {"blocks.2.a.toy_scale": wrong.clone()}, tmp_path / "odd.safetensors")
        text = run_built(house, "--verify", tmp_path / "odd.safetensors", status=1)
        assert "blocks.2.a (toy_scale F" in text
    del stored["blocks.2.a.comfy_quant"]
    save_file(stored, tmp_path / "bare.safetensors")
    text = run_built(house, "--verify", tmp_path / "bare.safetensors", status=1)
    assert "packed weights have neither comfy_quant nor an entry in the header" in text


def test_a_size_can_be_reached_with_it(house, source, tmp_path):
    out = tmp_path / "o.safetensors"
    command = [source, out, "--preset", "all", "--target-ratio", "0.58", "--quiet"]
    run_built(house, *command)
    kinds = {tensor.dtype for tensor in load_file(out).values()}
    assert torch.int8 in kinds
    assert "no defect found" in run_built(house, "--verify", out)


@pytest.mark.usefixtures("converted")  # writes the layer config
def test_scaled_fp8_files_have_no_form_for_it(house, source, tmp_path):
    config = source.with_name("config.json")
    command = [source, tmp_path / "o.safetensors", "--preset", "all", "--layer-config", config]
    command += ["--recipe", "scaled-fp8", "--quiet"]
    text = run_built(house, *command, status=1)
    assert "error: --recipe scaled-fp8: has no form for blocks.0.a" in text


def test_a_source_may_have_it(house, converted, tmp_path):
    out = tmp_path / "o.safetensors"
    command = [converted[0], out, "--preset", "none", "--include", "outside", "--quiet"]
    text = run_built(house, *command)
    assert "8 layers are quantised in the source and go over as they are" in text
    before, after = load_file(converted[0]), load_file(out)
    assert torch.equal(before["blocks.1.a.weight"], after["blocks.1.a.weight"])
    assert torch.equal(before["blocks.1.a.toy_scale"], after["blocks.1.a.toy_scale"])
    assert "no defect found" in run_built(house, "--verify", out)


def test_two_files_can_be_compared_by_it(house, converted, source):
    text = run(house, "compare_models.py", source, converted[0], "--values")
    assert "blocks.*.a  TOY8 W8A8, no input scale   4  0.006" in text


def test_no_other_file_compares_formats_by_name():
    modules = [sys.modules[type(row).__module__] for row in Format.rows]
    known = {name for module in modules for name, value in vars(module).items() if value in ROWS}
    known |= {row.title for row in ROWS} | {row.config for row in written_formats()}
    assert "SCALED_FP8" in known
    found = []
    for path in sorted((ROOT / "nvfp4").rglob("*.py")):
        if path.parent.name == "formats":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                for part in (node.left, *node.comparators):
                    name = getattr(part, "id", getattr(part, "value", None))
                    if isinstance(name, str) and name in known:
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not found


def test_the_rows_are_told_apart():
    titles = [row.title for row in Format.rows]
    assert len({*titles}) == len(titles)
    assert [format_titled(title) for title in titles] == Format.rows
    # A stored layer is tried against these in turn; the last one takes any FP8 weight.
    order = [row.title for row in readable_formats()]
    known = [title for title in order if title in ("NVFP4", "scaled FP8", "FP8", "plain FP8")]
    assert known == ["NVFP4", "scaled FP8", "FP8", "plain FP8"]
