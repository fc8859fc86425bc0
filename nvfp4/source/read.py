"""Read the source of a conversion: a model, and its LoRAs.

This is the first phase of a conversion. Headers and scales are read; weights are not, before they
are encoded. Whether a file stays as it was until then is told by its stamp.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvfp4.files import Stamp, stamp, translated
from nvfp4.model import Model, Source
from nvfp4.options import Options
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source
from nvfp4.source.whole import refuse_part


def read_source(options: Options) -> Source:
    """Open the model and the LoRAs to merge, and note the state of all files that are read later.

    Returns the model, with LoRAs as patches of its tensors, and the notes of both. Raises
    ConvertError for what is damaged, or quantised in a way that cannot be decoded, and for LoRAs
    that do not go with the model.
    """
    model, notes = open_source(options.source, plain_fp8=options.plain_fp8)
    refuse_part(options.source, model)
    model = dataclasses.replace(model, stamps=stamps_of(options, model))
    merged = merge_loras(options.merge_lora, model, partial=options.lora_partial)
    return Source(merged.model, (*notes, *merged.notes))


def stamps_of(options: Options, model: Model) -> dict[Path, Stamp]:
    """Tell size and time of the files that are read while converting, too, and not only before.

    These are the model's, the LoRAs' and the recordings': a change of them would mix old and new
    values in one output. Raises ConvertError where one is missing.
    """
    paths = [*model.files, *(lora.path for lora in options.merge_lora), *options.activation_stats]
    with translated(options.source):
        return {path: stamp(path) for path in paths}
