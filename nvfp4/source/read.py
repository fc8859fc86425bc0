"""Read the source of a conversion: a model, and its LoRAs.

This is the first phase of a conversion. Headers and scales are read; weights are not, before they
are encoded. Whether a file stays as it was until then is told by its stamp.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvfp4.errors import ConvertError
from nvfp4.files import Stamp, exists, is_same, stamp, translated
from nvfp4.model import Model, Source
from nvfp4.options import Options
from nvfp4.read.checkpoint import read_header
from nvfp4.source.loras import lora_in, merge_loras
from nvfp4.source.open import open_source
from nvfp4.source.whole import refuse_part


def read_source(options: Options) -> Source:
    """Open the model and the LoRAs to merge, and note the state of all files that are read later.

    Returns the model, with LoRAs as patches of its tensors, and the notes of both. Raises
    ConvertError for what is damaged, or quantised in a way that cannot be decoded, and for LoRAs
    that do not go with the model.
    """
    refuse_missing(options)
    encoders = options.text_encoder_preset is not None
    model, notes = open_source(options.source, plain_fp8=options.plain_fp8, encoders=encoders)
    refuse_overwriting(options, model)
    doubts = refuse_part(options.source, model)
    model = dataclasses.replace(model, stamps=stamps_of(options, model))
    merged = merge_loras(options.merge_lora, model, partial=options.lora_partial)
    return Source(merged.model, (*notes, *doubts, *merged.notes))


def refuse_missing(options: Options) -> None:
    """Raise ConvertError if there is no SOURCE but an original model is where OUTPUT is to go."""
    if exists(options.source) or not exists(options.output):
        return
    try:
        original = not open_source(options.output).model.quantised
    except ConvertError:
        return
    if original:
        raise ConvertError(
            f"{options.source}: no such file, but OUTPUT is there and a 16- or 32-bit model: are "
            f"SOURCE and OUTPUT swapped? ({options.output})"
        )


def refuse_overwriting(options: Options, model: Model) -> None:
    """Raise ConvertError if OUTPUT is there and not made by this tool: it would be overwritten.

    Whoever types two models may take both for sources, or the places for the other way round. An
    input is refused later, in other words; shards that are there, of whatever tool, are, too.
    """
    output = options.output
    inputs = (*options.inputs, *model.files)
    if options.output_sharded or any(is_same(output, path) for path in inputs):
        return
    if not exists(output) or not output.is_file() or is_ours(output):
        return
    if model.quantised:
        raise ConvertError(
            f"{output}: exists, and this tool did not make it, but SOURCE is quantised: are they "
            "swapped? If not, delete it first"
        )
    raise ConvertError(
        f"{output}: is no output of this program, and would be overwritten; delete it first, or "
        "give a folder as the last place to convert several models"
    )


def is_ours(path: Path) -> bool:
    """Tell whether this tool made a file: its header has a `convert_nvfp4` entry.

    An empty file is nobody's loss. One that is no safetensors file counts as foreign. Raises
    ConvertError where the system refuses to read it.
    """
    try:
        return not path.stat().st_size or "convert_nvfp4" in read_header(path)[1]
    except ConvertError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return False


def stamps_of(options: Options, model: Model) -> dict[Path, Stamp]:
    """Tell size and time of the files that are read while converting, too, and not only before.

    These are the model's, the LoRAs' and the recordings': a change of them would mix old and new
    values in one output. Raises ConvertError where one is missing.
    """
    loras = (lora_in(lora.path) for lora in options.merge_lora)
    paths = [*model.files, *loras, *options.activation_stats]
    with translated(options.source):
        return {path: stamp(path) for path in paths}
