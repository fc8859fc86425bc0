"""Render a summary as the files that are written: JSON and CSV.

The JSON goes to the converter, and back into the analyser as --summary; the CSV is for
spreadsheets. Both have the same rows, rounded to six digits already. `entry` writes what is
rendered.
"""

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
        **({"model": summary.model} if summary.model else {}),
        "format": summary.format,
        "mode": summary.mode,
        "percentiles": summary.percentiles,
        "layers": summary.rows,
    }
    # `read_log_summary` takes a summary without this key for one without steps.
    return render_json(data | ({"steps": summary.steps} if summary.steps else {}))


def summary_csv(summary: LogSummary) -> str:
    """Render the summary as CSV: a row for each layer, with every column that any of them has.

    Columns come in the order in which rows first have them. What a layer lacks or has as None is
    empty. Lines end with a line feed on every system. Statistics by step are not in it.
    """
    # Rows of a summary that somebody else made may have columns of their own.
    columns = dict.fromkeys(key for row in summary.rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary.rows)
    return text.getvalue()
