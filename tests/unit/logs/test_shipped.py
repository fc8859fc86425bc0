"""The lists in sensitive_layers/, which follow from the summaries in calib/."""

import make_shipped

from support.paths import ROOT


def test_shipped_lists_follow_from_the_shipped_summaries():

    for _, summary, layers, threshold in make_shipped.SHIPPED:
        listed = ROOT / f"sensitive_layers/sensitive_layers_{layers}.txt"
        assert listed.read_bytes() == make_shipped.shipped_list(summary, threshold).encode()
