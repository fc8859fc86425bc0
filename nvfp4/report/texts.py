"""Write the text files that a conversion is asked for: report, model card, layer config."""

from __future__ import annotations

from pathlib import Path

from nvfp4.files import make_folders, write_text
from nvfp4.report.check import check_data
from nvfp4.report.check_page import render_check_page
from nvfp4.report.data import Report, render_json, report_data
from nvfp4.report.layer_config import layer_config
from nvfp4.report.map_svg import precision_map_svg
from nvfp4.report.model_card import render_card
from nvfp4.report.page import render_html
from nvfp4.verify import Check

# What writes --report, by the suffix of its file: a row for each of REPORT_KINDS.
REPORTS = {".json": render_json, ".html": render_html, ".svg": precision_map_svg}


def write_check(check: Check, path: Path | None) -> None:
    """Write what --verify found as a page (.html) or as data (.json); does nothing without a path.

    Raises ConvertError where it cannot be written.
    """
    if path is not None:
        is_page = path.suffix.lower() == ".html"
        write_text(render_check_page(check) if is_page else render_json(check_data(check)), path)


def write_texts(report: Report) -> None:
    """Write the report, the model card and the layer config, where options name a file for them.

    Each is written whole or not at all. Raises ConvertError where one cannot be written.
    """
    options = report.options
    if options.make_folder:
        make_folders(options.texts)
    if options.report:
        render = REPORTS[options.report.suffix.lower()]
        write_text(render(report_data(report)), options.report)
    if options.model_card:
        write_text(render_card(report), options.model_card)
    if options.layer_config_out:
        write_text(layer_config(report.plans), options.layer_config_out)
