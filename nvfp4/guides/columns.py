"""Name the columns of a calibration summary."""

from __future__ import annotations


def percentile_key(percentile: float) -> str:
    """Name a percentile as calibration summaries name their columns: 99.9 -> "p99_9".

    percentile: from 0 to 100; six significant digits of it count.
    """
    return f"p{percentile:g}".replace(".", "_")
