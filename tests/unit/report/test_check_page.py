"""What --verify found, as a page: every layer, every kind of defect, and nothing that runs."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.errors import ConvertError
from nvfp4.options import Verification
from support.broken import write_case
from support.pages import Page


def page_of(path, *arguments):
    """Check a file by the command line, and take its page apart."""
    report = path.with_suffix(".html")
    main(["--verify", str(path), "--report", str(report), "--quiet", *map(str, arguments)])
    return Page(report.read_text(encoding="utf-8"))


def test_a_sound_file_shows_each_layer_with_its_error(tiny, converted, tmp_path, capsys):
    (tmp_path / "o.safetensors").symlink_to(converted)
    page = page_of(tmp_path / "o.safetensors", "--source", tiny)
    assert "no defect found" in capsys.readouterr().out
    assert page.problems == []
    assert page.headings[:2] == [("title", "o.safetensors: check"), ("h1", "o.safetensors")]
    assert ("h2", "Defects") not in page.headings
    assert sum("data-rmse" in cell for cell in page.cells) == 40
    assert len(page.cells) == 86
    # Without the source no error is known.
    assert not any("data-rmse" in cell for cell in page_of(tmp_path / "o.safetensors").cells)


@pytest.mark.parametrize("name", ["weight_is_gone", "nothing_configured", "only_the_header"])
def test_a_broken_file_tells_what_to_do(name, converted, tmp_path):
    page = page_of(write_case(name, converted, tmp_path / f"{name}.safetensors"))
    assert page.problems == []
    assert ("h2", "Defects") in page.headings
    assert not page.elements & {"script", "img", "iframe"}


def test_a_name_cannot_break_out(tmp_path):
    layer = "blocks.0.</table><script>alert(1)</script>"
    save_file({f"{layer}.weight": torch.ones(32, 32)}, tmp_path / "o.safetensors")
    page = page_of(tmp_path / "o.safetensors")
    assert page.problems == []
    assert "script" not in page.elements


def test_data_instead_of_a_page(converted, tmp_path):
    report = tmp_path / "r.json"
    main(["--verify", str(converted), "--report", str(report), "--quiet"])
    assert '"task": "verification"' in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("r.svg", "--report must end in .json or .html: r.svg"),
        ("m.safetensors.index.json", "--report must not replace an index: m.safetensors"),
    ],
)
def test_another_kind_of_report_is_refused(name, told):
    with pytest.raises(ConvertError, match=told):
        Verification(file="x.safetensors", report=name)
