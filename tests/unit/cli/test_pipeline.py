"""Several parts for one card: --fit, VAEs in the call, recipes whose files are looked for."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.cli.parse import parse_tasks
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.fit import StageKind, stage_of_vae, vae_in
from nvfp4.options import Options
from nvfp4.options.recipe_files import shipped_recipes
from nvfp4.read.checkpoint import read_header

RECIPE = '[[model]]\nsource = "high.safetensors"\n[[model]]\nsource = "low.safetensors"\n'
VAE = '[[vae]]\nsource = "vae.safetensors"\n'


def wan(path, blocks=6, width=256):
    """A Wan T2V of so many blocks, with random weights."""
    made = torch.Generator().manual_seed(len(path.name))
    shapes = {
        "patch_embedding.weight": (width, 16, 1, 2, 2), "head.modulation": (1, 2, width),
        "head.head.weight": (64, width), "text_embedding.0.weight": (width, 64),
        "time_embedding.0.weight": (width, 256), "time_projection.1.weight": (6 * width, width),
    }  # fmt: skip
    for block in range(blocks):
        for name in "qkvo":
            shapes[f"blocks.{block}.self_attn.{name}.weight"] = (width, width)
        shapes[f"blocks.{block}.ffn.0.weight"] = (4 * width, width)
        shapes[f"blocks.{block}.ffn.2.weight"] = (width, 4 * width)
    weights = {name: torch.randn(shape, generator=made).half() for name, shape in shapes.items()}
    save_file(weights, path)
    return path


def vae(path):
    """The tensors that Wan's VAE is told by."""
    save_file({
        "decoder.middle.0.residual.0.gamma": torch.zeros(384, 1, 1, 1),
        "encoder.conv1.weight": torch.zeros(96, 3, 3, 3, 3),
    }, path)  # fmt: skip
    return path


@pytest.fixture
def parts(tmp_path):
    for name in ("high", "low"):
        wan(tmp_path / f"{name}.safetensors")
    vae(tmp_path / "vae.safetensors")
    (tmp_path / "out").mkdir()
    return tmp_path


def run(capsys, *words):
    status = main([*map(str, words), "--quiet"])
    return status, *capsys.readouterr()


def test_parts_in_one_call_are_converted_and_told_of_together(capsys, parts):
    sources = [parts / f"{name}.safetensors" for name in ("vae", "high", "low")]
    status, out, _ = run(capsys, *sources, parts / "out", "--fit", "24GB")
    assert status == 0
    assert sorted(path.name for path in (parts / "out").iterdir()) == [
        "high_mixed.safetensors", "low_mixed.safetensors",
    ]  # fmt: skip
    table = out[out.index("pipeline  on a card of 24 GB (25.77 GB)") :].splitlines()
    assert [line.split()[:2] for line in table[2:5]] == [
        ["model", "high_mixed.safetensors"], ["model", "low_mixed.safetensors"],
        ["VAE", "vae.safetensors"],
    ]  # fmt: skip
    assert "sampled: 832x480x81" in out
    # All that may be chosen is 8-bit, as there is room for it.
    assert re.search(r"layers    12 INT8", out)


def test_data_of_a_pipeline_come_last(capsys, parts):
    sources = [parts / f"{name}.safetensors" for name in ("high", "low", "vae")]
    words = (*sources, parts / "out", "--fit", 24, "--json", "--dry-run", "--size", "1280x720x81")
    status, out, _ = run(capsys, *words)
    *_, last = lines = [json.loads(line) for line in out.splitlines()]
    assert (status, [line["task"] for line in lines]) == (0, ["conversion"] * 2 + ["pipeline"])
    assert [part["part"] for part in last["parts"]] == ["model", "model", "VAE"]
    assert {part["size"] for part in last["parts"]} == {"1280x720x81"}
    assert last["main_memory"] == sum(part["file_bytes"] for part in last["parts"])
    for part, line in zip(last["parts"], lines[:2], strict=False):
        assert part["file_bytes"] == line["output_bytes"]
        assert line["fit"].items() <= part.items()


def test_nothing_is_written_where_a_part_does_not_fit(capsys, parts):
    sources = [parts / f"{name}.safetensors" for name in ("high", "low")]
    status, out, err = run(capsys, *sources, parts / "out", "--fit", 8, "--size", "5120x2880x81")
    assert (status, out, [*(parts / "out").iterdir()]) == (1, "", [])
    assert len(err.splitlines()) == 2
    assert "where a card of 8 GB with " in err
    assert re.search(r"; --size \d+x\d+x\d+ fits$", err, re.MULTILINE)


def test_resume_leaves_out_what_is_complete_and_tells_of_all(capsys, parts):
    sources = [parts / f"{name}.safetensors" for name in ("high", "low")]
    words = (*sources, parts / "out", "--fit", 24, "--resume")
    _, first, _ = run(capsys, *words)
    status, out, _ = run(capsys, *words)
    assert (status, out) == (0, first[first.index("pipeline") :])


def test_a_fit_is_a_size_in_the_header_and_edge_blocks_open_where_needed(parts):
    source, output = parts / "high.safetensors", parts / "out" / "o.safetensors"
    task = {"source": source, "output": output, "quiet": True, "size": "1280x720x81"}
    roomy = convert(Options(**task, fit="24GB"))
    assert read_header(output)[1]["convert_nvfp4"].count("target_size") == 1
    stage = roomy.stage
    assert stage.kind is StageKind.SAMPLES
    # A card that holds less than the smallest with its edge blocks in 16 bits, and reserves less.
    card = stage.activations + stage.reserve - 100 * (1 << 20) + 5_000_000
    tight = convert(Options(**task, fit=card))
    assert any("--edge-blocks 0" in note for note in tight.notes)
    assert tight.output_bytes <= tight.stage.budget < roomy.output_bytes
    assert load_file(output)


def test_fit_is_refused_for_a_model_that_comfyui_has_no_estimate_of(tmp_path):
    save_file({"blocks.0.q.weight": torch.zeros(64, 64)}, tmp_path / "m.safetensors")
    task = Options(
        source=tmp_path / "m.safetensors",
        output=tmp_path / "o.safetensors",
        fit="16GB",
        preset="all",
    )
    with pytest.raises(ConvertError, match="no estimate of this model's activations"):
        convert(task)


def test_a_vae_alone_is_still_refused(capsys, parts):
    status, _, err = run(capsys, parts / "vae.safetensors", "--fit", 16)
    assert (status, "is a VAE: ComfyUI loads it with Load VAE" in err) == (1, True)


def test_a_vae_decodes_in_the_dtype_that_the_card_has(parts):
    model = vae_in(parts / "vae.safetensors")
    task = {"source": parts / "high.safetensors", "output": parts / "o.safetensors", "fit": "16GB"}
    half, weights = stage_of_vae(Options(**task), model, (832, 480, 81))
    assert half.activations == 7000 * 60 * 104 * 64 * 2
    assert weights == 2 * (384 + 96 * 3 * 27)
    assert vae_in(parts / "high.safetensors") is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_files_of_a_recipe_are_found_in_a_folder_and_in_folders_of_it(capsys, parts):
    recipe = parts / "r.toml"
    recipe.write_text(f'fit = "24GB"\n{VAE}{RECIPE}', encoding="utf-8")
    (parts / "models" / "wan").mkdir(parents=True)
    for name in ("high", "low", "vae"):
        (parts / f"{name}.safetensors").rename(parts / "models" / "wan" / f"{name}.safetensors")
    words = [parts / "models", parts / "out", "--recipe-file", recipe]
    tasks = parse_tasks([*map(str, words), "--fit", "16GB"])
    assert [task.source.name[:3] for task in tasks] == ["hig", "low", "vae"]
    assert {task.source.parent.name for task in tasks} == {"wan"}
    assert {task.fit for task in tasks} == {16 << 30}
    (parts / "models" / "low.safetensors").touch()
    assert parse_tasks([*map(str, words)])[1].source.parent.name == "models"
    (parts / "models" / "wan" / "high.safetensors").unlink()
    with pytest.raises(SystemExit):
        parse_tasks([*map(str, words)])
    assert "r.toml: no high.safetensors in " in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_shipped_pipelines_name_their_parts(tmp_path):
    pipelines = [path for path in shipped_recipes() if path.stem.startswith("pipeline-")]
    assert len(pipelines) == 5
    for path in pipelines:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'^source = "(.+)"', text, re.MULTILINE):
            (tmp_path / name).touch()
        tasks = parse_tasks([str(tmp_path), str(tmp_path), "--recipe-file", path.stem])
        assert len(tasks) == text.count("[[")
        assert all(task.fit and task.size for task in tasks)
