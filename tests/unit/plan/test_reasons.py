"""A reason's kind is for code, its text for people."""

from pathlib import Path

from nvfp4.families import ANY_FAMILY
from nvfp4.guides.records import Guides
from nvfp4.model import Model, TensorRef
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.reasons import Reason, Why


def test_a_reason_reads_with_all_that_it_overruled():
    first = Reason(Why.FAMILY, "--preset all")
    second = Reason(Why.MEASURED, "rel_rmse > 0.1").over(first)
    third = Reason(Why.FLOAT16, "a large value").over(second)
    assert str(first) == "--preset all"
    assert str(third) == "a large value (else rel_rmse > 0.1 (else --preset all))"
    assert [*third.overruled_kinds] == [Why.MEASURED, Why.FAMILY]
    assert not [*first.overruled_kinds]


def test_a_pattern_that_reads_like_a_reason_is_taken_for_none():
    pattern = "x|no FP4 matmul|(else --layer-config)"
    ref = TensorRef(
        name="x.weight", dtype="F32", shape=(32, 64), path=Path("nowhere"), begin=0, nbytes=8192
    )
    model = Model(tensors={ref.name: ref}, metadata={}, files=())
    options = Options(source="in", output="out.safetensors", include=(pattern,))
    (plan,), notes = make_plans(options, model, Guides(family=ANY_FAMILY))
    assert plan.reason == Reason(Why.OPTION, f"--include {pattern}")
    assert not notes
