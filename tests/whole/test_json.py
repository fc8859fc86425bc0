"""--json prints a line of JSON and nothing else, and --report writes the same, by the schema."""

import json

import pytest

import convert_nvfp4 as c
from support.broken import CASES, write_case
from support.conversions import RECIPE
from support.schema import SCHEMA, misfits


def printed(capsys, *arguments, status=0):
    """The data that a command prints."""
    assert c.main([*map(str, arguments), "--json"]) == status
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return json.loads(out), err


def test_a_conversion_prints_its_summary_as_data(tiny, tmp_path, capsys):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    mix = ["--gguf", tiny / "model.gguf", *RECIPE, "--report", report]
    data, _ = printed(capsys, tiny, out, *mix, "--quiet")
    assert misfits(data) == []
    assert (data["path"], data["output_bytes"]) == (str(out), out.stat().st_size)
    whole = json.loads(report.read_text(encoding="utf-8"))
    assert misfits(whole) == []
    assert {key: data[key] for key in data if key != "path"} == {
        key: whole[key] for key in whole if key != "tensors"
    }


def test_a_dry_run_prints_what_would_fail_and_fails(tiny, tmp_path, capsys):
    data, err = printed(capsys, tiny, tmp_path / "no/o.safetensors", "--dry-run", status=1)
    assert misfits(data) == []
    assert data["dry_run"]
    assert data["path"] is None
    assert err.splitlines()[-len(data["problems"]) :] == [
        f"error: {problem}" for problem in data["problems"]
    ]


def test_trade_offs_are_in_the_schema(tiny, tmp_path, capsys):
    sized = ["--edge-blocks", "1", "--target-size", "10MB", "--dry-run", "--quiet"]
    data, _ = printed(capsys, tiny, tmp_path / "o.safetensors", *sized)
    assert data["size_curve"]
    assert misfits(data) == []


def test_a_check_prints_its_verdict_as_data(converted, tiny, capsys):
    data, _ = printed(capsys, "--verify", converted, "--source", tiny, "--quiet")
    assert misfits(data) == []
    assert (data["outcome"], data["measured"], data["outliers"]) == ("LOADS", 40, [])


@pytest.mark.parametrize("name", [*CASES][:12])
def test_defects_are_in_the_schema(name, converted, tmp_path, capsys):
    path = write_case(name, converted, tmp_path / "broken.safetensors")
    status = int(c.DEFECTS[CASES[name][0]].outcome > c.Outcome.LOADS)
    data, _ = printed(capsys, "--verify", path, "--quiet", status=status)
    assert misfits(data) == []
    assert CASES[name][0] in [defect["defect"] for defect in data["defects"]]


def test_errors_stay_on_stderr(tmp_path, capsys):
    assert (
        c.main([str(tmp_path / "no.safetensors"), str(tmp_path / "o.safetensors"), "--json"]) == 1
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")


def test_the_schema_refuses_what_it_does_not_know(converted, capsys):
    data, _ = printed(capsys, "--verify", converted, "--quiet")
    assert "has colour, which the schema lacks" in misfits(data | {"colour": 1})[0]
    assert "lacks verdict" in misfits({k: v for k, v in data.items() if k != "verdict"})[0]
    assert "is not of ['integer']" in misfits(data | {"bytes": "many"})[0]


def test_a_validator_takes_the_schema(converted, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data, _ = printed(capsys, "--verify", converted, "--quiet")
    jsonschema.validate(data, SCHEMA)
