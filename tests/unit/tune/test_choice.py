"""The choice of alternatives against brute force: for a size, and with a share of work in FP4."""

import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.tune.choice import Alternative, choose_for_size, keep_fp4, lower_hull

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


def fp4_of(chosen) -> float:
    return sum(row.fp4 for row in chosen)


@st.composite
def choices_with_fp4(draw):
    """Choices whose smallest alternatives are mostly in FP4, and the share of it that is asked."""
    layers, works = draw(choices()), []
    for name, rows in layers.items():
        works.append(draw(st.sampled_from([0.0, 0.1, 0.1, 0.2, 0.3])))
        layers[name] = [rows[0]._replace(fp4=works[-1]), *rows[1:]]
    return layers, draw(st.floats(0, 1)) * sum(works)


@given(choices_with_fp4(), st.integers(0, 260))
def test_with_a_share_in_fp4_it_is_the_best_one_but_for_a_layer_and_a_step(problem, budget):
    layers, least = problem
    every = [*itertools.product(*layers.values())]
    fits = [r for r in every if size_of(r) <= budget and fp4_of(r) >= least - 1e-9]
    assume(fits)
    kept = keep_fp4(layers, budget, least)
    chosen = choose_for_size(kept, budget).values()
    assert size_of(chosen) <= budget
    assert fp4_of(chosen) >= least - 1e-6
    best = min(map(error_of, fits))
    hulls = map(lower_hull, layers.values())
    step = max(
        a.error - b.error for hull in hulls for a, b in itertools.pairwise([*hull, hull[-1]])
    )
    # What one layer more in FP4 than need be loses: the room it leaves goes to others.
    layer = max(max(row.error for row in rows) for rows in layers.values())
    assert best - 1e-9 <= error_of(chosen) <= best + step + layer + 1e-9


def test_what_loses_least_for_its_work_stays_in_fp4():
    def layer(error: float, work: float) -> list[Alternative]:
        return [Alternative(NVFP4, 10, error, work), Alternative(FP8, 20, 0.0)]

    layers = {"a": layer(0.5, 0.2), "b": layer(0.4, 0.4), "c": layer(0.3, 0.2), "d": layer(2, 0.2)}
    for share, stays in {0: "", 0.2: "b", 0.4: "b", 0.6: "bc", 0.8: "abc", 1: "abcd"}.items():
        chosen = choose_for_size(keep_fp4(layers, 80, share), 80)
        assert "".join(name for name, row in chosen.items() if row.fp4) == stays


def test_layers_alike_do_not_all_stay_in_fp4():
    rows = [Alternative(NVFP4, 10, 0.5, 0.1), Alternative(FP8, 20, 0.1)]
    chosen = choose_for_size(keep_fp4(dict.fromkeys("abcdefghij", rows), 200, 0.3), 200)
    assert sum(row.fp4 > 0 for row in chosen.values()) == 3
