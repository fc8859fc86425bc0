"""Make tests/golden/*.txt, the plans of the documented commands.

Usage: python tests/support/make_golden.py      (then read the difference before committing it)
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_wan import wan_shapes, write_gguf

from nvfp4.cli.parse import parse_options
from nvfp4.dtypes import bits_of
from nvfp4.families import ENCODERS
from nvfp4.guides.read import read_guides
from nvfp4.layout import make_job
from nvfp4.model import Model, ModelPart, TensorRef
from nvfp4.plan.make import make_plans
from nvfp4.prefixes import file_kind, named_for_comfyui, text_encoder
from nvfp4.report.data import Report
from nvfp4.report.summary import render_report
from nvfp4.source.open import refuse_kind
from support.conversions import RECIPE
from support.make_encoders import ENCODER_MODELS, TOKENIZERS
from support.make_families import read_headers
from support.paths import FAMILIES, GOLDEN

# No file is there: plans need names and shapes alone.
SOURCE = Path("SOURCE")
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

# Of published text encoders, those that ComfyUI loads quantised: presets are for these alone.
CONVERTED_ENCODERS = [
    name
    for name, row in ENCODER_MODELS.items()
    if not any(
        encoder.half_only and row.published.recognised == f"{encoder.title} ({size.title})"
        for encoder in ENCODERS.values()
        for size in encoder.sizes
    )
]


def planned(size: str, arguments: list[str], gguf: Path) -> Report:
    """The report of a dry run on a Wan model of which only names and shapes exist."""
    shapes = wan_shapes(size)
    write_gguf(gguf, shapes)
    return planned_for(shapes, ["--gguf", str(gguf), *arguments], "F32")


def planned_for(shapes: dict[str, tuple], arguments: list[str], dtype: str = "BF16") -> Report:
    return planned_model(model_of(shapes, dtype), arguments)


def model_of(shapes: dict[str, tuple], dtype: str = "BF16") -> Model:
    """A model of which only names and shapes exist."""
    dtypes = dict.fromkeys(shapes, dtype) | dict.fromkeys(TOKENIZERS & shapes.keys(), "U8")
    refs = {
        name: TensorRef(
            name=name,
            dtype=dtypes[name],
            shape=shape,
            path=SOURCE,
            begin=0,
            nbytes=bits_of(dtypes[name], shape) // 8,
        )
        for name, shape in shapes.items()
    }
    return Model(tensors=refs, metadata={}, files=())


def planned_model(model: Model, arguments: list[str]) -> Report:
    options = parse_options([str(SOURCE), "OUT.safetensors", *arguments, "--dry-run"])
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


def encoder_text(name: str) -> str:
    """What --preset auto plans for a published text encoder; raises ConvertError for others."""
    shapes = read_headers(FAMILIES / "encoders" / f"{name}.txt")
    model, _ = named_for_comfyui(SOURCE, model_of(shapes))
    refuse_kind(SOURCE, file_kind(SOURCE, model.tensors))
    part = ModelPart(text_encoder(SOURCE, model.tensors)[0])
    return golden_text(planned_model(dataclasses.replace(model, encoders=(part,)), []))


def golden_text(report: Report) -> str:
    """What a report says, wherever the checkout lies."""
    return (
        render_report(report).replace(str(Path("OUT.safetensors").absolute()), "OUT.safetensors")
        + "\n"
    )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    families = {f"auto_{path.stem}": family_text(path.stem) for path in FAMILIES.glob("*.txt")}
    encoders = {f"encoder_{name}": encoder_text(name) for name in CONVERTED_ENCODERS}
    for name, text in (golden_texts() | families | encoders).items():
        (GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
