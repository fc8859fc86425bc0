"""The share of the work that a rank gets, and the pieces that large layers come in."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.cli.parse import parse_options
from nvfp4.encode import pieces
from nvfp4.encode.pieces import tensors_of_rank
from nvfp4.guides.read import read_guides
from nvfp4.plan.make import make_plans
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import open_model
from support.kills import command
from support.small_t5 import t5


def test_work_is_dealt_evenly_and_once(tiny):
    options = parse_options(command(tiny, "o.safetensors"))
    model = open_model(tiny)
    plans, _ = make_plans(options, model, read_guides(options, model))
    for size in (1, 2, 3, 4):
        shares = [tensors_of_rank(plans, Ranks(rank, size)) for rank in range(size)]
        dealt = [plan.ref.name for share in shares for plan in share]
        assert sorted(dealt) == sorted(plan.ref.name for plan in plans)
        loads = [sum(plan.ref.nbytes for plan in share) for share in shares]
        assert max(loads) < 1.3 * min(loads)


@pytest.mark.parametrize(
    ("formats", "stored"),
    [
        ("int8,16bit", torch.float16),
        ("nvfp4,int8,16bit", torch.float32),
        ("nvfp4,int8,16bit", torch.float8_e4m3fn),
    ],
)
def test_rows_of_a_layer_in_pieces_make_the_same_file(formats, stored, tmp_path, monkeypatch):
    """An embedding and layers in INT8, whose last piece has fewer rows than the others."""
    source = tmp_path / "t5.safetensors"
    tensors = t5()
    tensors["shared.weight"][64:] /= 64
    tensors = {name: t.to(stored) if t.ndim == 2 else t for name, t in tensors.items()}
    save_file(tensors, source)

    def converted(name):
        out, report = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json"
        options = ["--formats", formats, "--plain-fp8", "--report", str(report), "--quiet"]
        assert main([str(source), str(out), *options]) == 0
        tensors = json.loads(report.read_text(encoding="utf-8"))["tensors"]
        return out.read_bytes(), [t["relative_rmse"] for t in tensors if t.get("sqnr_db")]

    whole, errors = converted("whole")
    monkeypatch.setattr(pieces, "PIECE_WEIGHTS", 37 * 256)
    split, others = converted("split")
    assert split == whole
    assert len(errors) > 160
    assert others == pytest.approx(errors, rel=1e-4)
