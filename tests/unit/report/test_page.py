"""The report as a page: nothing in a name can break out of it."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.errors import printable
from support.conversions import convert_tiny
from support.pages import Page


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>\"'",
        "</style><img src=x onerror=alert(1)>",
        "a\u00e9\u5b57' onfocus=\"b",
        "&lt;",
    ],
)
def test_a_name_cannot_break_out_of_the_page(name, tmp_path):
    weights = {f"blocks.0.{name}.weight": torch.randn(32, 32), f"{name}.weight": torch.ones(4, 4)}
    save_file(weights, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--quiet"]
    report = tmp_path / "r.html"
    assert (
        main([*command, "--preset", "none", "--include", r"^blocks", "--report", str(report)]) == 0
    )
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.elements & {"script", "img"}
    assert {cell["data-name"] for cell in page.cells} == {printable(name) for name in weights}
    assert "\x1b" not in text


def test_a_dry_run_has_a_page_without_errors(tiny, tmp_path):
    report = tmp_path / "r.html"
    convert_tiny(tiny, tmp_path / "o.safetensors", "--dry-run", "--report", str(report))
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.cells) == 86
    assert all("data-rmse" not in cell for cell in page.cells)
    assert "Error per layer" not in text
