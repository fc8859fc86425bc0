"""The choice of precisions for a size, against brute force."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
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
