"""--report: the page shows what the JSON says, and nothing in a name can break out of it."""

import html
import json
import re
import shutil
import subprocess

import pytest

from nvfp4.report.looks import look_of
from support.conversions import convert_tiny
from support.pages import Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


# fmt: off
QUIET_CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]


@pytest.fixture(scope="module")
def reports(tiny, tmp_path_factory):
    """The page and the JSON data of one conversion, each written by the command line."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("r.json", "r.html"):
        convert_tiny(tiny, folder / "o.safetensors", "--report", str(folder / name), "--quiet")
    return folder / "r.html", json.loads((folder / "r.json").read_text(encoding="utf-8"))


def opened_as_text(path, _):
    return path.read_text(encoding="utf-8")


def opened_in_chromium(path, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    folder = f"--user-data-dir={tmp_path}"
    command = [CHROMIUM, *QUIET_CHROMIUM, folder, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("opened", [opened_as_text, opened_in_chromium])
def test_the_page_shows_the_numbers_of_the_json(opened, reports, tmp_path):
    path, data = reports
    page = Page(opened(path, tmp_path))
    layers = [row for row in data["tensors"] if row["name"].endswith(".weight")]
    layers = {row["name"]: row for row in layers if len(row["shape"]) == 2}
    assert len(page.cells) == len(layers) == 86
    for cell in page.cells:
        row = layers.pop(cell["data-name"])
        assert cell["data-stored"] == row["stored_as"]
        look = look_of(row["stored_as"], row.get("matmul", ""))
        assert cell["class"].split()[:2] == ["cell", look.css]
        assert float(cell.get("data-rmse", "nan")) == pytest.approx(
            row.get("relative_rmse", float("nan")), rel=0, abs=0, nan_ok=True
        )
    assert [row[:4] for row in page.table("Bytes per precision")] == [
        [name, *(f"{total[key]:,}" for key in ("layers", "tensors", "bytes"))]
        for name, total in data["totals"].items()
    ]
    shown = [row for row in page.table("Matmuls, by share of the linear weights")]
    assert [row[:2] for row in shown if row[0] != "W16A16"] == [
        [kind, str(found["layers"])] for kind, found in data["matmuls"].items()
    ]
    worst = sorted((row for row in data["tensors"] if "sqnr_db" in row),
                   key=lambda row: -row["relative_rmse"])  # fmt: skip
    table = page.table("All linear layers, the largest error first")
    assert [[row[0], *row[2:4]] for row in table[: len(worst)]] == [
        [row["name"].removesuffix(".weight"), f"{row['relative_rmse']:.4f}",
         f"{row['sqnr_db']:.1f} dB"] for row in worst
    ]  # fmt: skip
    assert len(table) == 86


def test_the_page_needs_nothing_else(reports):
    text = reports[0].read_text(encoding="utf-8")
    assert not Page(text).elements & {"script", "link", "img", "iframe", "object"}
    assert "//" not in text.replace("<!DOCTYPE", "")
    assert "url(" not in text
    assert "@import" not in text


# Loads the page into frames of several widths, and writes down how wide it and its cells are.
MEASURE = """<body><script>
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const cells = [...page.querySelectorAll(".map .cell")].map(cell => cell.offsetWidth);
    return [+frame.width, page.documentElement.scrollWidth, Math.min(...cells)];
  }));
});
</script>"""


def test_the_page_fits_a_phone_and_its_cells_a_finger(reports, tmp_path):
    policy = re.compile("<meta http-equiv=[^>]*>")  # frames would inherit it, and scripts measure
    page = html.escape(policy.sub("", reports[0].read_text(encoding="utf-8")))
    frames = [f'<iframe width="{width}" srcdoc="{page}"></iframe>' for width in (390, 800, 1280)]
    probe = tmp_path / "probe.html"
    probe.write_text(MEASURE + "".join(frames), encoding="utf-8")
    title = dict(Page(opened_in_chromium(probe, tmp_path)).headings)["title"]
    measured = json.loads(title)
    assert [width for width, *_ in measured] == [390, 800, 1280]
    for width, scrolled, narrowest in measured:
        assert scrolled <= width
        assert narrowest >= 20
