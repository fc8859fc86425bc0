"""Make the shipped calibration summaries and sensitive-layer lists from the published figures.

Usage: python calib/make_shipped.py FOLDER     (the *_input_scales.csv files; see calib/README.md)
       python calib/make_shipped.py --trade    (what each threshold costs, as a Markdown table)
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

from make_wan import wan_shapes

from nvfp4.files import write_text
from nvfp4.logs.lists import render_list, sensitive_layers
from nvfp4.logs.records import Criteria, LogSummary
from nvfp4.logs.summary import read_log_summary

# What is shipped: the published figures' file, the names of the summary and of the list of
# sensitive layers made from it, and the scale_cv from which a layer is on that list.
SHIPPED = (
    ("wan22_ti2v_5b", "wan22_5b", "wan22_5b", 0.16),
    ("wan22_i2v_14b_low", "wan22_14b_lownoise", "wan22_i2v_14b_low", 0.11),
    ("wan22_i2v_14b_high", "wan22_14b_highnoise", "wan22_i2v_14b_high", 0.12),
)
# The percentiles over calls that the published figures have columns for.
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

# For each summary: the model's usual name, its size in make_wan.py, and the tokens of one call.
MODELS = {
    "wan22_5b": ("TI2V 5B", "5b", 33_440),
    "wan22_14b_lownoise": ("I2V 14B low", "14b", 32_760),
    "wan22_14b_highnoise": ("I2V 14B high", "14b", 32_760),
}
# Cross-attention k and v multiply the text, which has this many tokens, and not the video.
TEXT_TOKENS = 512
# The table has a row for each of these scale_cv; None flags no layer by it.
THRESHOLDS = (0.01, 0.05, 0.1, 0.11, 0.12, 0.16, 0.2, 0.3, None)


def read_rows(path: Path) -> list[dict]:
    """Read published figures from a CSV file: one dictionary for each layer.

    Every column but `layer` becomes a float, and `count` an int. Raises ValueError for a cell that
    is no number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                key: text if key == "layer" else int(text) if key == "count" else float(text)
                for key, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def shipped_summary(name: str) -> LogSummary:
    """Read a shipped calibration summary by the middle of its file name, such as "wan22_5b"."""
    return read_log_summary(ROOT / "calib" / f"scales_summary_{name}.json")


def criteria(threshold: float | None, cross_attention: bool = True) -> Criteria:
    """Make the criteria that the shipped lists go by.

    `threshold` is the scale_cv from which a layer is on the list; None puts none on it for that.
    Cross-attention is listed whole unless told otherwise.
    """
    limits = {} if threshold is None else {"scale_cv": threshold}
    return Criteria(thresholds=limits, cross_attention=cross_attention)


def shipped_list(name: str, threshold: float) -> str:
    """Render the list of sensitive layers that follows from a shipped summary.

    `threshold` is the scale_cv from which a layer is on it. A test compares the result with the
    file that is shipped, so that the two cannot drift apart.
    """
    return render_list(shipped_summary(name).rows, criteria(threshold))


def layer_work(name: str) -> dict[str, int]:
    """Count multiplications: {layer: tokens x rows x columns of one call} of a summary's layers.

    Cross-attention k and v multiply the text's tokens, all other layers those of the video.
    """
    _, size, tokens = MODELS[name]
    shapes = wan_shapes(size)
    work = {}
    for row in shipped_summary(name).rows:
        rows, columns = shapes[f"{row['layer']}.weight"]
        text = re.search(r"cross_attn\.[kv]$", row["layer"])
        work[row["layer"]] = (TEXT_TOKENS if text else tokens) * rows * columns
    return work


def trade(name: str) -> Iterator[tuple[float | None, float, float, float]]:
    """Yield what each of THRESHOLDS costs for a model, as four numbers.

    They are the threshold, the share of measured layers that scale_cv flags, the share of the
    measured layers' multiply work that stays W4A4 without these, and the same share without all
    cross-attention, too.
    """
    rows, work = shipped_summary(name).rows, layer_work(name)
    for threshold in THRESHOLDS:
        # Without and with all cross-attention on the list.
        flagged = [sensitive_layers(rows, criteria(threshold, also)) for also in (False, True)]
        kept = [
            sum(size for layer, size in work.items() if layer not in names) for names in flagged
        ]
        yield (
            threshold,
            len(flagged[0]) / len(rows),
            kept[0] / sum(work.values()),
            kept[1] / sum(work.values()),
        )


def render_trade() -> str:
    """Render the trade-off as a Markdown table: three shares in per cent for each model."""
    lines = [
        "Per cent of the measured layers flagged by `scale_cv` / of their multiply work that stays "
        "W4A4 without these / and without all cross-attention.",
        "",
        f"| `scale_cv` from | {' | '.join(title for title, _, _ in MODELS.values())} |",
        "|---|" + "---|" * len(MODELS),
    ]
    for found in zip(*map(trade, MODELS), strict=True):
        threshold = found[0][0]
        cells = (" / ".join(f"{100 * share:.0f}" for share in shares) for _, *shares in found)
        label = "none" if threshold is None else f"{threshold:g}"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write every shipped summary and list anew from the published figures in `folder`."""
    for figures, summary, layers, threshold in SHIPPED:
        rows = read_rows(folder / f"{figures}_input_scales.csv")
        title = f"Wan 2.2 {MODELS[summary][0]}"
        found = {
            "model": title,
            "format": "nvfp4",
            "mode": "dynamic",
            "percentiles": PERCENTILES,
            "layers": rows,
        }
        out = ROOT / "calib" / f"scales_summary_{summary}.json"
        write_text(json.dumps(found, indent=1) + "\n", out)
        out = ROOT / "sensitive_layers" / f"sensitive_layers_{layers}.txt"
        write_text(shipped_list(summary, threshold), out)


if __name__ == "__main__":
    if sys.argv[1:] == ["--trade"]:
        print(render_trade())
    else:
        main(Path(sys.argv[1]))
