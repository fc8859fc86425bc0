"""Make the rows of a summary from the calls of a layer, and check them.

A row is a dict, as it is written to JSON: `layer`, `count`, scale_* and amax_* figures, scale_cv.
Rows of a summary that is read again are checked here, as they may come from elsewhere;
`guides.calibration` reads them for the converter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from nvfp4.guides.columns import percentile_key
from nvfp4.logs.records import rounded
from nvfp4.logs.series import Series
from nvfp4.logs.statistics import tally_figures
from nvfp4.names import is_layer_name, natural_key
from nvfp4.read.json_files import is_nan

# Whole numbers of JSON can be larger than any float, and then cannot be compared with one.
LARGEST = sys.float_info.max


def layer_row(layer: str, series: Series, percentiles: Iterable[float]) -> dict:
    """Make the row of one layer: `layer`, `count`, the figures of its scale and amax, scale_cv.

    series: settled, with one call at least. percentiles: from 0 to 100, a scale_p and an amax_p
    column each. See `tally_figures` for the other columns. Figures have six significant digits.
    """
    row = {"layer": layer, "count": series.calls}
    for prefix, tally in (("scale", series.scale), ("amax", series.amax)):
        found = tally_figures(tally, percentiles)
        row |= {f"{prefix}_{key}": value for key, value in found.items()}
    return with_cv(row)


def step_rows(layer: str, series: Series, percentile: float) -> Iterator[dict]:
    """Make one row for each step that a layer was called in: mean, maximum and one percentile.

    series: settled. percentile: from 0 to 100. Steps count from 0; a step without a
    call has no row. Yields dicts of layer, step, count, scale_mean, scale_max and such as
    scale_p99_9.
    """
    key = percentile_key(percentile)
    for step, tally in enumerate(series.steps):
        if tally.number:
            # Only three figures are kept of a step, as each layer has as many of these rows as a
            # run has steps.
            found = tally_figures(tally, [percentile])
            kept = {f"scale_{name}": found[name] for name in ("mean", "max", key)}
            yield {"layer": layer, "step": step, "count": tally.number} | kept


def over_steps(rows: list[dict], percentile: float) -> dict[str, float | int]:
    """Make the columns that tell how one percentile of a layer's scale differs between its steps.

    rows: of `step_rows` for one layer, with this percentile; at least one. Returns the mean, the
    least and the largest over the steps, and their number: scale_step_p99_9_mean and so on, as the
    analyser that this one follows names them.
    """
    key = percentile_key(percentile)
    found = [row[f"scale_{key}"] for row in rows]
    mean = rounded(sum(found) / len(found))
    figures = {"mean": mean, "min": min(found), "max": max(found), "steps": len(found)}
    return {f"scale_step_{key}_{name}": figure for name, figure in figures.items()}


def with_cv(row: dict) -> dict:
    """Add scale_cv to a row, its standard deviation over its mean.

    row: with scale_std and a positive scale_mean. It comes from the rounded figures that are
    written, so that a log and its summary agree, and one that the row has already is replaced.
    """
    return row | {"scale_cv": rounded(row["scale_std"] / row["scale_mean"])}


def without_nan(row: dict) -> dict:
    """Put None in the place of NaN in a row: a kurtosis that one call, or equal ones, do not have.

    row: of another program's summary; ours has None there, as JSON knows no NaN.
    """
    return {column: None if is_nan(value) else value for column, value in row.items()}


def in_natural_order(rows: Iterable[dict]) -> list[dict]:
    """Sort rows by the name of their layer, blocks.2 before blocks.10.

    rows: dicts with a `layer`, of a summary or of its steps. Returns a new list.
    """
    return sorted(rows, key=lambda row: natural_key(row["layer"]))


def is_row(row: object, needed: str) -> bool:
    """Tell whether a value from a JSON file can be a row.

    needed: the column that must be there and not negative: scale_std, or step. A row is an object
    with a layer's name and a positive scale_mean; otherwise it has numbers or null. Infinities are
    refused, as JSON cannot hold them, and so are true and false.
    """
    if not isinstance(row, dict) or not is_layer_name(row.get("layer")):
        return False
    # A truth value is an int for isinstance; by its type it is none.
    numbers = {key: value for key, value in row.items() if key != "layer" and value is not None}
    return (
        all(
            type(value) in (int, float) and -LARGEST <= value <= LARGEST
            for value in numbers.values()
        )
        and numbers.get("scale_mean", 0) > 0
        and numbers.get(needed, -1) >= 0
    )


def shared_percentiles(rows: Iterable[dict]) -> tuple[float, ...]:
    """Find the percentiles of the scale that every row has, ascending.

    rows: at least one. A column scale_p99_9 stands for 99.9; one that is empty or not positive in
    any row is left out, as plots show it on a logarithmic axis.
    """
    positive = ({key for key, value in row.items() if key != "layer" and value is not None
                 and value > 0} for row in rows)  # fmt: skip
    found = (
        re.fullmatch(r"scale_p(\d{1,3})(?:_(\d{1,9}))?", key) for key in set.intersection(*positive)
    )
    return tuple(sorted(float(f"{match[1]}.{match[2] or 0}") for match in found if match))
