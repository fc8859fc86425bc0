"""Make the options of a text encoder that lies beside a diffusion model."""

from __future__ import annotations

import dataclasses

from nvfp4.options.option import options_of
from nvfp4.options.table import GENERAL, Options

# Options besides the general ones that are for text encoders as well.
SHARED_OPTIONS = ("formats", "card")


def part_options(options: Options) -> Options:
    """Make the options of a text encoder: --text-encoder-preset is its preset.

    What names layers, sizes or files is meant for the diffusion model, and left out.
    """
    others = {
        row.name: row.default
        for row in options_of(Options)
        if row.group not in ("", GENERAL) and row.name not in SHARED_OPTIONS
    }
    others["preset"] = options.text_encoder_preset
    return dataclasses.replace(options, **others)
