"""The share of the work that a rank gets."""

from nvfp4.cli.parse import parse_options
from nvfp4.encode.pieces import tensors_of_rank
from nvfp4.guides.read import read_guides
from nvfp4.plan.make import make_plans
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import open_model
from support.kills import command


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
