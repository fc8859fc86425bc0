"""A file has one size, with a unit, in all programs."""

import re

import pytest

import convert_nvfp4 as c
from nvfp4.compare.entry import compare_models
from nvfp4.errors import exact_size, gigabytes
from support.conversions import convert_tiny


def sizes(text):
    return re.findall(r"[\d.,]+ (?:GB|MB|bytes)", text)


@pytest.mark.parametrize("sharded", [(), ("--output-sharded", "--max-shard-size", "5MB")])
def test_all_programs_tell_the_same_size(tiny, tmp_path, capsys, sharded):
    out = convert_tiny(tiny, tmp_path / "o.safetensors", "--quiet", *sharded)
    result, exact, source = sizes(capsys.readouterr().out)[:3]
    if sharded:
        out = tmp_path / "o.safetensors.index.json"
    files = [sum(path.stat().st_size for path in folder.glob("*.safetensors"))
             for folder in (tiny, tmp_path)]  # fmt: skip
    assert [source, result] == [*map(gigabytes, files)]
    assert exact == f"{files[1]:,} bytes"
    assert compare_models([str(tiny), str(out), "--exit-code"]) == 1
    assert sizes(capsys.readouterr().out)[:2] == [source, result]
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    assert sizes(capsys.readouterr().out)[:1] == [result]


def test_few_bytes_are_not_rounded_to_nothing():
    assert [*map(gigabytes, (0, 5, 9_999, 10_000, 10**9, 57_160_000_000))] == [
        "0 bytes", "5 bytes", "9,999 bytes", "0.01 MB", "1.00 GB", "57.16 GB"
    ]  # fmt: skip
    assert [*map(exact_size, (5, 10**7))] == ["5 bytes", "10.00 MB (10,000,000 bytes)"]
