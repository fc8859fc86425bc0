"""A model's bytes, written without a command line."""

import torch
from safetensors.torch import save_file

from nvfp4.formats.floats import KEPT
from nvfp4.layout import Job, make_layout
from nvfp4.options.table import Options
from nvfp4.plan.records import TensorPlan
from nvfp4.production import write_model
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import open_model
from nvfp4.write.journal import Journal


def test_the_file_is_the_one_the_safetensors_library_writes(tmp_path):
    tensors = {
        "z": torch.arange(6.0).view(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "ä": torch.tensor(2.0),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    model = open_model(tmp_path / "m.safetensors")
    plans = [
        TensorPlan(ref=ref, precision=KEPT, reason="", dtype=ref.dtype)
        for ref in model.tensors.values()
    ]
    options = Options(
        source=tmp_path / "m.safetensors", output=tmp_path / "o.safetensors", quiet=True
    )
    job = Job(
        options=options,
        model=model,
        plans=plans,
        origin={"version": "0"},
        layouts={options.output: make_layout(plans, model.metadata, {})},
    )
    with Journal(options, Ranks()) as journal:
        journal.begin(job)
        write_model(job, journal, Ranks())
    assert options.output.read_bytes() == options.source.read_bytes()
