"""--target-size on real files."""

import functools
import json

import pytest
from encoder import checkpoint
from safetensors.torch import load_file, save_file
from target_size import uniform

import convert_nvfp4 as c

pytestmark = pytest.mark.slow
OLD_FORMATS = ("--edge-blocks", "0", "--formats", "nvfp4,fp8,16bit")


def error_of(chosen) -> float:
    return sum(row.error for row in chosen)


def size_of(chosen) -> int:
    return sum(row.nbytes for row in chosen)


@pytest.fixture(scope="module")
def measured(tiny):
    """{model: (command, its layers' alternatives)}: the synthetic Wan and a trained encoder."""
    found = {}
    for name, command in {
        # The text embedding is a seventh of the synthetic model: one step of it is too large here.
        "wan": [str(tiny), "--exclude", "^text_embedding", *OLD_FORMATS],
        "encoder": [str(checkpoint()), "--preset", "smart", *OLD_FORMATS],
    }.items():
        options = c.parse_options([command[0], "o.safetensors", *command[1:], "--quiet"])
        model, _ = c.open_source(options.source)
        planner = functools.partial(c.make_plans, model=model, guides=c.read_guides(options, model))
        start = {plan.ref.name: plan for plan in planner(options)[0]}
        candidates = c.list_candidates(options, planner, start)
        found[name] = command, c.measure_alternatives(options, candidates, c.Ranks()).choices
    return found


@pytest.mark.parametrize("name", ["wan", "encoder"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_it_beats_a_uniform_choice(measured, name, share):
    _, layers = measured[name]
    layers = {name: rows for name, rows in layers.items() if rows[0].precision is c.NVFP4}
    least = sum(rows[0].nbytes for rows in layers.values())
    budget = int(least + share * (sum(rows[1].nbytes for rows in layers.values()) - least))
    ours, theirs = c.choose_for_size(layers, budget).values(), uniform(layers, budget)
    assert size_of(ours) <= budget
    assert error_of(ours) < error_of(theirs)


@pytest.mark.parametrize(  # one of the encoder's 36 layers is 1.4 % of it
    ("name", "share"),
    [("wan", 0.2), ("wan", 0.5), ("wan", 0.8), ("encoder", 0.2), ("encoder", 0.5)],
)
def test_the_file_is_just_smaller(measured, name, share, tmp_path):
    (source, *command), layers = measured[name]
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    planned = c.convert(c.parse_options([source, str(out), *command, "--dry-run", "--quiet"]))
    least, most = (sum(rows[end].nbytes for rows in layers.values()) for end in (0, -1))
    open_bytes = sum(c.bytes_in_output(p) for p in planned.plans if p.ref.name in layers)
    target = int(planned.output_bytes - open_bytes + least + share * (most - least))
    command += ["--target-size", str(target), "--quiet", "--report", str(report)]
    assert c.main([source, str(out), *command]) == 0
    size, first = out.stat().st_size, out.read_bytes()
    assert 0.99 * target < size <= target
    data = json.loads(report.read_text(encoding="utf-8"))
    curve = data["size_curve"]
    # The file's own error lies between those of the sizes about it.
    below = [point["error"] for point in curve if point["nbytes"] <= size]
    assert curve[-1]["error"] <= data["size_error"] <= min(below, default=curve[0]["error"]) + 1e-9
    assert min(abs(point["nbytes"] - size) for point in curve) < 0.02 * target
    assert [point["error"] for point in curve] == sorted((p["error"] for p in curve), reverse=True)
    if share == 0.5:
        assert c.main([source, str(out), *command]) == 0
        assert out.read_bytes() == first


def test_what_other_options_say_stays(tiny, tmp_path):
    out = tmp_path / "o.safetensors"
    given = ["--target-ratio", "0.4", "--exclude", r"blocks\.5\.", "--include", r"blocks\.6\."]
    options = c.parse_options([str(tiny), str(out), "--edge-blocks", "1", *given, "--quiet"])
    plans = {plan.ref.layer: plan for plan in c.convert(options).plans}
    for layer, plan in plans.items():
        if plan.ref.is_linear_weight and layer.startswith("blocks."):
            block = int(layer.split(".")[1])
            pinned = {0: c.HALF, 5: c.HALF, 6: c.NVFP4, 7: c.HALF}.get(block)
            assert pinned is None or plan.precision is pinned, layer
            assert (plan.reason.kind is c.Why.TARGET_SIZE) <= (pinned is None)


def test_what_a_gguf_keeps_stays_and_all_else_may_be_chosen(tiny, tmp_path):
    out = tmp_path / "o.safetensors"
    arguments = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8"]
    base = [str(tiny), str(out), *arguments, "--quiet"]
    start = {p.ref.name: p for p in c.convert(c.parse_options([*base, "--dry-run"])).plans}
    for ratio, has_int8 in (("0.25", False), ("0.4", True)):
        report = c.convert(c.parse_options([*base, "--target-ratio", ratio, "--dry-run"]))
        moved = [p for p in report.plans if p.precision is not start[p.ref.name].precision]
        assert moved
        assert all(start[plan.ref.name].is_quantised for plan in moved)
        # Room is spent on INT8, of which a small file may have some, too.
        assert any(plan.precision is c.INT8 for plan in moved) >= has_int8


def test_a_share_of_the_work_stays_in_w4a4(tiny, tmp_path, capsys):
    base = [str(tiny), str(tmp_path / "o.safetensors"), "--edge-blocks", "1", "--dry-run"]
    base += ["--quiet", "--target-ratio", "0.5"]
    shares = []
    for share in ("0.3", "0.5"):
        report = c.convert(c.parse_options([*base, "--fp4-share", share]))
        found = report.work["shares"]["FP4"]
        assert float(share) <= found < float(share) + 0.03
        assert report.output_bytes <= report.options.target_ratio * report.source_bytes
        shares.append(found)
    assert c.main([*base, "--fp4-share", "0.9"]) == 1
    told = "--fp4-share 0.9: at most "
    assert told in capsys.readouterr().err


def test_a_size_that_cannot_be_had_is_an_error(tiny, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    assert c.main([str(tiny), str(out), "--target-size", "1MB", "--quiet"]) == 1
    told = "--target-size: 1.00 MB (1,000,000 bytes) is too little: the smallest"
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_without_open_layers_it_is_an_error(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--preset", "none", "--include", "ffn"]
    assert c.main([*command, "--target-size", "14MB", "--quiet"]) == 1
    assert (
        "--target-size: no layer is left: other options decide for all" in capsys.readouterr().err
    )


def test_tensors_that_float16_cannot_hold_are_counted(tiny, tmp_path):
    state = {}
    for shard in tiny.glob("*.safetensors"):
        state |= load_file(shard)
    state["time_embedding.0.weight"][0, 0] = 1e5
    save_file(state, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--dtype", "float16", "--quiet"]
    report = c.convert(c.parse_options([*command, "--target-size", "14MB"]))
    assert 0.99 * 14e6 < out.stat().st_size <= 14e6
    assert any("not fit float16" in note for note in report.notes)
