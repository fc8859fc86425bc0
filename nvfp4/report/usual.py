"""Tell which layers' errors stand out from what is usual for their format.

A format's error hardly depends on the layer: 1,048,576 numbers that are normal, Laplace's or
Student's with 3 degrees of freedom, with rows or columns of very different size, had errors within
5 % of each other in every format but INT8 that is not rotated (tests/unit/report/test_usual.py). So
`Format.usual_error` is one number, and what is far above it is worth a look.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from nvfp4.formats.base import Format
from nvfp4.numeric.damage import Damage

# An error stands out from 1.5 times the usual one on; --scale-search amax has up to 1.2 times that.
STANDS_OUT = 1.5
# So many layers that stand out are named; the report has all.
NAMED = 5


def told_error(damage: Damage) -> float:
    """Return the relative RMSE that counts: of the output where rounding went by statistics.

    Such rounding enlarges the error of the weight to lessen that of the output.
    """
    return damage.relative_rmse if damage.output_after is None else damage.output_after


def errors_data(damage: Mapping[str, Damage], forms: Mapping[str, Format]) -> dict[str, dict]:
    """Describe the errors of the layers of each format, for JSON: {title: figures}.

    damage: {layer: its error}; forms: {layer: its format}. "usual" is None where a format has none,
    "largest" and "median" where they are no finite numbers.
    """
    groups = defaultdict(list)
    for layer, found in damage.items():
        groups[forms[layer]].append(told_error(found))
    return {
        form.title: {
            "layers": len(errors),
            "usual": form.usual_error or None,
            "median": json_number(median(errors)),
            "largest": json_number(max(errors, key=least_last)),
        }
        for form, errors in sorted(groups.items(), key=lambda group: group[0].rank)
    }


def outliers_data(damage: Mapping[str, Damage], forms: Mapping[str, Format]) -> list[dict]:
    """List the layers whose error stands out, the worst for its format first, for JSON."""
    found = []
    for layer, lost in damage.items():
        form, error = forms[layer], told_error(lost)
        # Asked so that NaN stands out, too.
        if form.usual_error and not error <= STANDS_OUT * form.usual_error:
            found.append((layer, form, error))
    found.sort(key=lambda one: -least_last(one[2] / one[1].usual_error))
    return [
        {
            "layer": layer,
            "format": form.title,
            "error": json_number(error),
            "usual": form.usual_error,
        }
        for layer, form, error in found
    ]


def least_last(number: float) -> float:
    """Make a sort key by which NaN counts as infinite."""
    return math.inf if math.isnan(number) else number


def json_number(number: float) -> float | None:
    """Return a number that JSON can have, None for NaN and infinity."""
    return number if math.isfinite(number) else None


def render_errors(errors: dict[str, dict], outliers: list[dict]) -> list[str]:
    """Say in a sentence that errors are what is usual, or name the layers that stand out."""
    if not errors:
        return []
    if not outliers:
        told = (
            f"{title} {'no number' if row['median'] is None else format(row['median'], '.2g')}"
            for title, row in errors.items()
        )
        return [f"all as usual for their format: {', '.join(told)} (median relative RMSE)"]
    count = sum(row["layers"] for row in errors.values())
    verb = "stands" if len(outliers) == 1 else "stand"
    lines = [f"{len(outliers)} of {count} layers {verb} out from what is usual for their format:"]
    for one in outliers[:NAMED]:
        error = "no number" if one["error"] is None else f"{one['error']:.3g}"
        lines.append(f"  {error}  {one['layer']} ({one['format']}, usual {one['usual']:.2g})")
    more = len(outliers) - NAMED
    return lines + ([f"  and {more} more"] if more > 0 else [])
