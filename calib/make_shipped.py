"""Make the shipped calibration summaries and sensitive-layer lists from the published figures.

Usage: python calib/make_shipped.py FOLDER     (the *_input_scales.csv files; see calib/README.md)
"""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# published figures -> summary, sensitive-layer list, scale_cv from which a layer is on the list
SHIPPED = (
    ("wan22_ti2v_5b", "wan22_5b", "wan22_5b", 0.16),
    ("wan22_i2v_14b_low", "wan22_14b_lownoise", "wan22_i2v_14b_low", 0.11),
    ("wan22_i2v_14b_high", "wan22_14b_highnoise", "wan22_i2v_14b_high", 0.12),
)
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def read_rows(path: Path) -> list[dict]:
    """One dict a layer; every column but the name is a number, `count` a whole one."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                key: text if key == "layer" else int(text) if key == "count" else float(text)
                for key, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def sensitive_lines(rows: list[dict], threshold: float) -> list[str]:
    """The list's lines: every cross-attention layer, then layers whose input scale varies."""
    blocks = sorted({int(row["layer"].split(".")[1]) for row in rows})
    lines = ["# every cross-attention layer of the inner blocks"]
    lines += [f"blocks.{block}.cross_attn.{part}" for block in blocks for part in "qkvo"]
    lines += ["", f"# layers whose input scale varies: scale_cv = std / mean >= {threshold}"]
    for row in sorted(rows, key=lambda row: (int(row["layer"].split(".")[1]), row["layer"])):
        cv = row["scale_std"] / row["scale_mean"]
        if cv >= threshold and ".cross_attn." not in row["layer"]:
            lines.append(f"{row['layer']}  # {cv:.3f}")
    return lines


def main(folder: Path) -> None:
    for figures, summary, layers, threshold in SHIPPED:
        rows = read_rows(folder / f"{figures}_input_scales.csv")
        found = {"format": "nvfp4", "mode": "dynamic", "percentiles": PERCENTILES, "layers": rows}
        out = ROOT / "calib" / f"scales_summary_{summary}.json"
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8", newline="\n")
        out = ROOT / "sensitive_layers" / f"sensitive_layers_{layers}.txt"
        text = "\n".join(sensitive_lines(rows, threshold)) + "\n"
        out.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
