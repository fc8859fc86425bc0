"""Calls as the patched ComfyUI logs them, and runs of their analysis."""

import json

import pytest

from nvfp4.logs.entry import analyze_log
from support.paths import ROOT

SHIPPED = ROOT / "calib/scales_summary_wan22_5b.json"


def line(layer="blocks.2.ffn.0", amax=2.688, kind="nvfp4", mode="dynamic", shape="(33440, 3072)"):
    return f"{kind}\t{mode}\t{layer}\t{amax / 2688:.6f}\t{amax:.6f}\t{shape}\n"


def log_of(tmp_path, *lines, name="calls.tsv"):
    path = tmp_path / name
    path.write_bytes("".join(lines).encode())
    return path


def run(*arguments, capsys):
    status = analyze_log([*map(str, arguments)])
    return status, *capsys.readouterr()


def rows_of(tmp_path, *arguments, capsys):
    out = tmp_path / "summary.json"
    status, text, err = run(*arguments, "--json", out, capsys=capsys)
    assert (status, err) == (0, "")
    data = json.loads(out.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return data, {row["layer"]: row for row in data["layers"]}, text


def error_of(*arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
