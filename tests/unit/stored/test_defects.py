"""The table of known defects."""

from nvfp4.stored.defects import DEFECTS
from support import broken_integers
from support.broken import CASES


def test_every_defect_has_a_broken_file():
    by_hand = {
        "unaligned",
        "values",
        "missing",
        "extra",
        "empty",
        "prefix",
        "near",
        "unknown options",
        "other source",
    }  # below
    by_hand.add("moved bias")  # test_rounding.py
    # tests/whole/test_asking.py, where COMFYUI_ROOT names a ComfyUI
    by_hand |= {defect for defect in DEFECTS if defect.startswith("asked ")}
    cases = {**CASES, **broken_integers.CASES}
    assert {defect for defect, _ in cases.values()} | by_hand == DEFECTS.keys()
