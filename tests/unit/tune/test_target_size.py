"""The choice of precisions for a size, against brute force, and sizes that leave none."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.options import Options
from nvfp4.tune.target_size import Alternative, choose_for_size, lower_hull

ORDER = (NVFP4, FP8, HALF)


def error_of(chosen) -> float:
    return sum(row.error for row in chosen)


def size_of(chosen) -> int:
    return sum(row.nbytes for row in chosen)


@st.composite
def choices(draw):
    """Some layers' alternatives, where more bytes mean less error, mostly."""
    layers = {}
    for index in range(draw(st.integers(1, 5))):
        sizes = sorted(draw(st.sets(st.integers(1, 50), min_size=2, max_size=3)))
        errors = draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes)))
        layers[f"l{index}"] = [Alternative(*row) for row in zip(ORDER, sizes, errors, strict=False)]
    return layers


@given(choices(), st.integers(0, 260))
def test_the_choice_is_the_best_one_but_for_a_step(layers, budget):
    chosen = choose_for_size(layers, budget).values()
    fits = [rows for rows in itertools.product(*layers.values()) if size_of(rows) <= budget]
    if not fits:
        assert size_of(chosen) == sum(min(row.nbytes for row in rows) for rows in layers.values())
        return
    assert size_of(chosen) <= budget
    best = min(map(error_of, fits))
    hulls = map(lower_hull, layers.values())
    step = max(
        a.error - b.error for hull in hulls for a, b in itertools.pairwise([*hull, hull[-1]])
    )
    assert best <= error_of(chosen) <= best + step + 1e-9


NOTHING = " leaves nothing to choose: with every open layer unquantised, m.safetensors (0.52 MB) "


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"target_size": "8GB"}, f"--target-size: 8.00 GB (8,000,000,000 bytes){NOTHING}becomes "),
        ({"target_size": 300_000}, f"--target-size: 0.30 MB (300,000 bytes){NOTHING}becomes 0.27 "),
        (
            {"target_ratio": 0.9},
            f"--target-ratio 0.9: 0.47 MB (471,859 bytes){NOTHING}becomes 0.27",
        ),
        (
            {"target_size": "2kB"},
            "2,000 bytes is too little: the smallest that this plan allows is ",
        ),
        ({"target_size": "2kB", "preset": "smart"}, "2,000 bytes is too little: the smallest that"),
        (
            {"target_size": "2kB", "include": "8", "preset": "none"},
            "2,000 bytes is too little: the",
        ),
        (
            {"target_size": "1GB", "include": "8", "preset": "none"},
            ": no layer is left: other opti",
        ),
        ({"target_size": "1GB", "exclude": "0"}, f"{NOTHING}becomes 0.2"),
    ],
    ids=str,
)
def test_a_size_out_of_reach_is_told_before_any_weight_is_read(tmp_path, dtype, wanted, told):
    """Reading a weight would find the NaN in it."""
    weights = {f"blocks.{i}.8.weight": torch.full((128, 128), torch.nan) for i in range(8)}
    save_file(weights, tmp_path / "m.safetensors")
    task = {"source": tmp_path / "m.safetensors", "output": tmp_path / "o.safetensors"}
    task |= {"preset": "all", "dtype": dtype, "quiet": True} | wanted
    with pytest.raises(ConvertError) as found:
        convert(Options(**task))
    assert told in str(found.value)
    del task[next(name for name in task if "target" in name)]
    if task["preset"] == "all":
        with pytest.raises(ConvertError, match=r"holds NaN"):
            convert(Options(**task, target_size=150_000))
