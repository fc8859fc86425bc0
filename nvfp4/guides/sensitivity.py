"""Turn measured figures of layers into what they ask for.

Figures are `rel_rmse` (what a layer's input loses in NVFP4) and `clip_rate` (how much of it clips);
they come from a recording, a sensitivity JSON or a calibration summary. Layers above an option's
threshold become 16-bit or get full-precision matmul; `plan` applies that.
"""

from __future__ import annotations

import math

from nvfp4.errors import ConvertError, examples, in_number, of_another_model
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import Calibration, Measured, Recorded
from nvfp4.model import Model, bare
from nvfp4.notes import Note, Rank
from nvfp4.options import Options
from nvfp4.read.json_files import is_figure, is_nan, is_never_called
from nvfp4.reasons import Reason, Why

# For each threshold on a measured figure: its option, the figure, and the option that says what
# happens to layers above it.
MEASURED_THRESHOLDS = (
    ("sensitivity_threshold", "rel_rmse", "sensitivity_action"),
    ("clip_rate_threshold", "clip_rate", "clip_rate_action"),
)


def recorded_sensitivity(
    recording: dict[str, Recorded], calibration: dict[str, Calibration]
) -> dict[str, dict[str, float]]:
    """Return {bare layer: {"rel_rmse": ..., "clip_rate": ...}} from a recording.

    The clip rate is the share of blocks that saturate at the layer's NVFP4 input scale in
    `calibration`; 0 for a layer without one, whose scale is dynamic.
    """
    # An infinite scale clips nothing: that of a layer that is not calibrated.
    scales = {bare(layer): row.scales.get(NVFP4, math.inf) for layer, row in calibration.items()}
    return {
        layer: {
            "rel_rmse": recorded.rel_rmse,
            "clip_rate": recorded.saturated(scales.get(layer, math.inf)),
        }
        for layer, recorded in recording.items()
    }


def listed_sensitivity(
    options: Options, rows: list[dict]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Take the wanted figures from the rows of a sensitivity JSON, or of a summary that has them.

    Returns {bare layer: {figure: ...}} of the layers that were measured, and notes. Wanted are the
    figures that have a threshold. A layer that no call of its recording reached has NaN, null or
    nothing as a figure, or a `max_abs` of 0: it was not measured, and a note counts such. Infinity
    is above every threshold. Raises ConvertError for what is no number, and where no layer is left.
    """
    path, figures = options.sensitivity_json, {}
    wanted = [row[1] for row in MEASURED_THRESHOLDS if getattr(options, row[0]) is not None]
    unmeasured, infinite = [], []
    for row in rows:
        # Files name the mean over calls either way; the longer name is preferred.
        found = {figure: row.get(f"{figure}_mean", row.get(figure)) for figure in wanted}
        measured = {} if is_never_called(row) else {k: v for k, v in found.items() if not is_nan(v)}
        if wrong := [k for k, v in measured.items() if not (is_figure(v) or v == math.inf)]:
            raise ConvertError(f"{path}: layer {row['layer']}: needs a number as {wrong[0]}_mean")
        if len(measured) < len(wanted):
            unmeasured.append(row["layer"])
        if math.inf in measured.values():
            infinite.append(row["layer"])
        # A row without any figure adds no layer, so that it does not make the file one of this
        # model.
        figures |= {bare(row["layer"]): measured} if measured else {}
    for figure in wanted:
        if not any(figure in row for row in figures.values()):
            raise ConvertError(
                f"{path}: needs a number as {figure}_mean; none of its {len(rows)} layers has one"
            )
    notes = []
    if unmeasured:
        what = in_number(len(unmeasured), "layers were not measured")
        told = f"{path.name}: {what}, so no threshold applies: {examples(unmeasured)}"
        notes.append(Note(told, Rank.NOTE))
    if infinite:
        what = in_number(len(infinite), "layers have an infinite figure")
        told = f"{path.name}: {what}, which is above the threshold: {examples(infinite)}"
        notes.append(Note(told, Rank.NOTE))
    return figures, notes


def varying_layers(options: Options, summary: list[dict]) -> set[str]:
    """Return bare layers whose input scale varies from call to call.

    By standard deviation, or by the coefficient of variation (deviation / mean), from the options'
    thresholds up. Without a threshold on the deviation, that below which nine tenths of the layers
    lie is one. Raises ConvertError for rows without `scale_std` and `scale_mean`.
    """
    path = options.input_scale_summary_json
    rows = {bare(row["layer"]): row for row in summary}
    wrong = [
        name
        for name, row in rows.items()
        if not all(is_figure(row.get(column)) for column in ("scale_std", "scale_mean"))
    ]
    if wrong:
        raise ConvertError(f"{path}: has no scale_std and scale_mean for {examples(wrong)}")
    limit = options.input_scale_summary_std_threshold
    if limit is None:
        limit = sorted(row["scale_std"] for row in rows.values())[int((len(rows) - 1) * 0.9)]
    return {
        name
        for name, row in rows.items()
        # A layer that never varies is not listed, even where nine tenths of the layers do not.
        if row["scale_std"] > 0
        and (
            row["scale_std"] >= limit
            or row["scale_std"] >= options.input_scale_summary_cv_threshold * row["scale_mean"]
        )
    }


def measured_layers(
    options: Options, model: Model, figures: dict[str, dict[str, float]], summary: list[dict]
) -> tuple[Measured, ...]:
    """List what measured figures ask for, one record for each threshold.

    `figures` is {bare layer: {figure: value}} of --sensitivity-json, `summary` the rows of a
    calibration summary; without these files they are empty, and nothing is asked for on their
    account. Raises ConvertError where the figures are of another model.
    """
    asked, path = [], options.sensitivity_json
    for option, figure, action in MEASURED_THRESHOLDS:
        limit = getattr(options, option)
        if path is not None and limit is not None:
            # A layer without this figure was not measured, and is above no threshold.
            above = {layer for layer, row in figures.items() if row.get(figure, 0) > limit}
            asked.append((getattr(options, action), f"{figure} > {limit:g}", above))
    # A file whose layers are all unknown is of another model; a few unknown ones are not minded.
    known = {bare(ref.layer) for ref in model.linear_weights}
    if path is not None and not figures.keys() & known:
        raise of_another_model(path, it_has=figures, other_has=known)
    if options.input_scale_summary_fp16_std:
        # No fixed input scale suits such layers on every call, so that they are always 16-bit.
        varying = varying_layers(options, summary)
        asked.append(("fp16", "input scale varies from call to call", varying))
    return tuple(
        Measured(
            is_half=action == "fp16",
            reason=Reason(Why.MEASURED, text),
            weights=frozenset(
                ref.name for ref in model.linear_weights if bare(ref.layer) in layers
            ),
        )
        for action, text, layers in asked
    )
