"""--goal: one word for other options, which win where they are given."""

import dataclasses

import pytest

from nvfp4.cards import CARDS
from nvfp4.cli.parse import parse_options
from nvfp4.errors import ConvertError
from nvfp4.options import Options, options_of
from nvfp4.options.goals import GOALS, GOALS_TOLD, flags_text, in_flags

BASE = {"source": "x.safetensors", "output": "o.safetensors"}
ROWS = {row.name: row for row in options_of(Options)}


def test_goals_set_options_that_tell_whether_they_were_named():
    for goal in GOALS.values():
        for name, value in goal.values.items():
            assert ROWS[name].default is None
            assert ROWS[name].accept(value) == value
            assert in_flags({name: value}).keys() == {ROWS[name].flag}
    assert "quality has INT8 in place of all 4-bit formats (--formats int8,16bit)" in GOALS_TOLD


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("card", [None, *CARDS])
def test_a_goal_is_the_same_as_the_options_it_stands_for(goal, card):
    options = Options(**BASE, goal=goal, card=card)
    words = flags_text(options.expanded).split() + (["--card", card] if card else [])
    long = parse_options([*BASE.values(), *words])
    assert options.recorded == long.recorded
    assert dataclasses.replace(long, goal=goal) == options
    assert dataclasses.replace(options, quiet=True).expanded == options.expanded
    assert parse_options([*BASE.values(), *words, "--goal", goal]) == options


def test_what_is_named_wins():
    options = Options(**BASE, goal="speed", edge_blocks=0)
    assert options.expanded == {"--edge-blocks": "0"}
    with pytest.raises(ConvertError, match=r"^--goal speed does nothing beside --edge-blocks$"):
        Options(**BASE, goal="speed", edge_blocks=1)
    with pytest.raises(ConvertError, match=r"^--goal quality does nothing beside --formats$"):
        Options(**BASE, goal="quality", formats="fp8,16bit")


def test_what_a_goal_stands_for_contradicts_as_if_it_were_named():
    told = (
        "--goal quality stands for --formats int8,16bit, and --formats contradicts "
        "--input-scale-value: its layers take neither input scales nor full-precision matmul"
    )
    with pytest.raises(ConvertError) as found:
        Options(**BASE, goal="quality", input_scale_value=1)
    assert found.value.problems == (told,)


def test_the_name_tells_the_goals_format():
    assert Options(source="x.safetensors", goal="quality").output.name == "x_int8.safetensors"
