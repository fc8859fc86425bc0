"""Make tests/golden/*.txt, the plans of the documented commands.

Usage: python tests/support/make_golden.py      (then read the difference before committing it)
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_wan import wan_shapes, write_gguf

from nvfp4.cli.parse import parse_options
from nvfp4.dtypes import bits_of
from nvfp4.guides.read import read_guides
from nvfp4.layout import make_job
from nvfp4.model import Model, TensorRef
from nvfp4.plan.make import make_plans
from nvfp4.report.data import Report
from nvfp4.report.summary import render_report
from support.conversions import RECIPE
from support.make_families import read_headers
from support.paths import FAMILIES, GOLDEN

LOW_14B = [
    option.replace("wan22_5b.json", "wan22_14b_lownoise.json").replace(
        "wan22_5b.txt", "wan22_i2v_14b_low.txt"
    )
    for option in RECIPE
]
HIGH_14B = [
    option.replace("lownoise", "highnoise").replace("14b_low.txt", "14b_high.txt")
    for option in LOW_14B
]
FINAL_5B = [option for option in RECIPE if option != "--use-fp8"]
CALIBRATE_5B = [*FINAL_5B[: FINAL_5B.index("--input-scale-summary-json")], "--no-input-scale"]
COMMANDS = {  # the owner's four, and the size of the model each is for
    "wan22_i2v_14b_low": ("14b", LOW_14B),
    "wan22_i2v_14b_high": ("14b", HIGH_14B),
    "wan22_ti2v_5b_calibrate": ("5b", CALIBRATE_5B),
    "wan22_ti2v_5b": ("5b", FINAL_5B),
}


def planned(size: str, arguments: list[str], gguf: Path) -> Report:
    """The report of a dry run on a Wan model of which only names and shapes exist."""
    shapes = wan_shapes(size)
    write_gguf(gguf, shapes)
    return planned_for(shapes, ["--gguf", str(gguf), *arguments], "F32")


def planned_for(shapes: dict[str, tuple], arguments: list[str], dtype: str = "BF16") -> Report:
    refs = {
        name: TensorRef(
            name=name,
            dtype=dtype,
            shape=shape,
            path=Path("SOURCE"),
            begin=0,
            nbytes=bits_of(dtype, shape) // 8,
        )
        for name, shape in shapes.items()
    }
    model = Model(tensors=refs, metadata={}, files=())
    options = parse_options(["SOURCE", "OUT.safetensors", *arguments, "--dry-run"])
    plans, notes = make_plans(options, model, read_guides(options, model))
    job = make_job(options, model, plans)
    return Report(
        options=options,
        plans=tuple(plans),
        origin=job.origin,
        source_bytes=model.nbytes,
        output_bytes=job.nbytes,
        notes=tuple(notes),
    )


def golden_texts() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "wan-Q5_K_M.gguf"
        return {
            name: golden_text(planned(size, arguments, gguf))
            for name, (size, arguments) in COMMANDS.items()
        }


def family_text(name: str) -> str:
    """What --preset auto plans for a published model."""
    report = planned_for(read_headers(FAMILIES / f"{name}.txt"), [])
    return golden_text(report)


def golden_text(report: Report) -> str:
    """What a report says, wherever the checkout lies."""
    return (
        render_report(report).replace(str(Path("OUT.safetensors").absolute()), "OUT.safetensors")
        + "\n"
    )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    families = {f"auto_{path.stem}": family_text(path.stem) for path in FAMILIES.glob("*.txt")}
    for name, text in (golden_texts() | families).items():
        (GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
