"""Several processes, by torchrun: the same bytes, and one end for all."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.conversions import convert_in_ranks, torchrun
from support.files import OLDER
from support.kills import KILL, command, needs_sigkill
from support.paths import ROOT

pytestmark = pytest.mark.slow


def test_two_ranks_write_the_same_file(tiny, converted, tmp_path):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    process = torchrun(*command(tiny, out, "--report", str(report)))
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.read_bytes() == converted.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, report]
    assert text.count("written   ") == 1
    rows = json.loads(report.read_text())["tensors"]
    assert sum("relative_rmse" in row for row in rows) == 40


def test_several_models_in_one_call(tmp_path):
    """Each is a meeting of its own, and none is looked for at the place of the one before."""
    names = [f"m{number}.safetensors" for number in range(5)]
    for name in names:
        save_file({f"x.{i}.weight": torch.randn(64, 64) for i in range(8)}, tmp_path / name)
    (tmp_path / "out").mkdir()
    given = [*(str(tmp_path / name) for name in names), str(tmp_path / "out")]
    done = convert_in_ranks(*given, "--preset", "all", "--device", "cpu", "--quiet")
    text = "".join(process.stdout for process in done)
    assert text.count("written   ") == len([*(tmp_path / "out").iterdir()]) == len(names)


def test_an_error_in_one_rank_ends_all_of_them(tmp_path):
    weights = {f"x.{i}.weight": torch.randn(256, 256) for i in range(8)}
    weights["x.5.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "m.safetensors")
    (tmp_path / "o.safetensors").write_bytes(OLDER)
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "o.safetensors")]
    process = torchrun(*arguments, "--include", "x", "--quiet")
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert text == ""
    assert errors.count("x.5.weight holds NaN or Inf: the file is damaged") == 1
    assert (tmp_path / "o.safetensors").read_bytes() == OLDER
    assert len(list(tmp_path.iterdir())) == 2


@needs_sigkill
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_fails_the_run_and_another_run_goes_on(tiny, converted, tmp_path, rank):
    out, script = tmp_path / "o.safetensors", tmp_path / "kill.py"
    script.write_text(KILL.replace("if name ==", f'if os.environ["RANK"] == "{rank}" and name =='))
    options, model = c.parse_options(command(tiny, out, "--resume")), c.open_model(tiny)
    plans, _ = c.make_plans(options, model, c.read_guides(options, model))
    at = [
        plan.ref.name for plan in c.tensors_of_rank(plans, c.Ranks(rank, 2)) if plan.is_quantised
    ][-2]
    more = {"env": os.environ | {"PYTHONPATH": str(ROOT)}}
    process = torchrun(at, *command(tiny, out, "--resume"), script=str(script), **more)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not out.exists()
    noted = [line for path in tmp_path.glob("*.journal*") for line in path.open()]
    assert sum('"tensor"' in line for line in noted) > 20
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()
    assert sorted(tmp_path.iterdir()) == [script, out]


def test_two_ranks_give_up_a_plan_together(tmp_path):
    """A value that float16 cannot hold shows in one rank only; all go on with the changed plan."""
    tensors = {f"x.{i}.weight": torch.randn(64, 64) for i in range(4)} | {"big": torch.tensor(1e5)}
    save_file(tensors, tmp_path / "m.safetensors")
    one, two = (str(tmp_path / name) for name in ("1.safetensors", "2.safetensors"))
    more = ["--include", "x", "--dtype", "float16", "--quiet"]
    assert c.main([str(tmp_path / "m.safetensors"), one, *more]) == 0
    convert_in_ranks(tmp_path / "m.safetensors", two, *more)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3
