"""Render a summary as the files that are written: JSON for the converter, or CSV."""

from __future__ import annotations

import csv
import io

from nvfp4.logs.records import LogSummary
from nvfp4.report.data import render_json


def summary_json(summary: LogSummary) -> str:
    """Render a summary as --json writes it.

    The converter's --input-scale-summary-json reads `layers`; --summary reads all of it again. The
    steps are only in it where there are any. Raises ValueError for NaN, which no row has.
    """
    data = {
        "format": summary.format,
        "mode": summary.mode,
        "percentiles": summary.percentiles,
        "layers": summary.rows,
    }
    return render_json(data | ({"steps": summary.steps} if summary.steps else {}))


def summary_csv(summary: LogSummary) -> str:
    """Render a row for each layer, with every column that any of them has.

    What a layer lacks is empty. Lines end with a line feed on every system.
    """
    columns = dict.fromkeys(key for row in summary.rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary.rows)
    return text.getvalue()
