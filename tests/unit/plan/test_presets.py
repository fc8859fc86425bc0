"""Edge blocks and families."""

import pytest

from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY
from nvfp4.plan.presets import edge_block_rules
from support.files import model_with


def test_edge_blocks_are_the_first_and_last_in_running_order():
    names = [f"double_blocks.{i}.x.weight" for i in range(3)]
    names += [f"single_blocks.{i}.x.weight" for i in range(12)]
    rules = edge_block_rules(model_with(names), ANY_FAMILY, 2)
    assert sorted(name for rule in rules for name in rule.names) == [
        "double_blocks.0.x.weight",
        "double_blocks.1.x.weight",
        "single_blocks.10.x.weight",
        "single_blocks.11.x.weight",
    ]


def test_edge_blocks_need_blocks():
    with pytest.raises(ConvertError, match=r"has no transformer blocks named blocks\.N"):
        edge_block_rules(model_with(["head.weight"]), ANY_FAMILY, 2)
