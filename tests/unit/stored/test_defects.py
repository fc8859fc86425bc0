"""The table of known defects."""

from nvfp4.stored.defects import DEFECTS
from support.broken import CASES


def test_every_defect_has_a_broken_file():
    by_hand = {"unaligned", "values", "missing", "extra", "empty", "prefix"}  # below
    by_hand.add("moved bias")  # test_rounding.py
    assert {defect for defect, _ in CASES.values()} | by_hand == DEFECTS.keys()
