#!/usr/bin/env python3
"""Draw the README's picture: the precision map of Wan 2.2 I2V 14B, low noise, as documented.

usage: python tools/picture.py [FOLDER]      (default: docs)

Writes picture_light.svg and picture_dark.svg, as GitHub chooses by its own theme and not by the
reader's system. Nothing is downloaded or converted: the model is a file of 57 GB with names and
shapes whose weights are a hole, so that it takes a few kB of the disk, and the command line of
docs/models.md plans it.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from make_wan import Shape, wan_shapes, write_gguf  # noqa: E402 - examples/ is beside tools/

from nvfp4 import Options, convert, report_data  # noqa: E402
from nvfp4.report.map_svg import precision_map_svg  # noqa: E402

# Bytes of a float32.
ITEM = 4


def write_hollow(path: Path, shapes: dict[str, Shape]) -> None:
    """Write a safetensors file of float32 tensors whose data is a hole in the file: zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + ITEM * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def documented_plan(folder: Path) -> dict:
    """Plan the documented conversion in a folder, and return the data of its report."""
    shapes = wan_shapes("14b")
    source = folder / "wan2.2-i2v-a14b-low-noise.safetensors"
    gguf = folder / "Wan2.2-I2V-A14B-LowNoise-Q5_K_M.gguf"
    write_hollow(source, shapes)
    write_gguf(gguf, shapes)
    options = Options(
        source=source,
        output=folder / "wan2.2-i2v-lownoise-nvfp4mixed.safetensors",
        gguf=gguf,
        gguf_nvfp4_max_bitdepth=5,
        use_fp8=True,
        gguf_keep_edge_blocks_fp16=True,
        input_scale_summary_json="scales_summary_wan22_14b_lownoise.json",
        input_scale_summary_multiplier=1.08,
        full_precision_mm_layers="sensitive_layers_wan22_i2v_14b_low.txt",
        full_precision={"--full-precision-mm-cross-attn-qkvo"},
        dry_run=True,
        quiet=True,
    )
    return report_data(convert(options))


def main(pictures: Path) -> int:
    """Write both pictures into a folder, and return 0."""
    with tempfile.TemporaryDirectory() as folder:
        data = documented_plan(Path(folder))
    for scheme in ("light", "dark"):
        path = pictures / f"picture_{scheme}.svg"
        path.write_text(precision_map_svg(data, scheme), encoding="utf-8", newline="\n")
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"))
