"""Read what the ComfyUI recorder wrote: figures and statistics of layers' inputs.

The format is that of comfyui_nvfp4/recorder.py, version 1. Figures (maxima, histograms, errors)
are read at once; second moments, which are gigabytes, stay in the file as TensorRefs until
`load_statistics` is asked for a layer's. Recordings of several prompts add up.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from nvfp4.errors import ConvertError, of_another_model
from nvfp4.guides.records import BIN_EDGES, Moments, Recorded, Sums
from nvfp4.model import Model, TensorRef, bare, unwrapped
from nvfp4.numeric.feedback import Statistics
from nvfp4.read.checkpoint import opened, parse_header
from nvfp4.read.json_files import is_figure
from nvfp4.read.tensors import load

# Largest channels and sampled rows of a layer. A file may be a hole of any size, which takes no
# disk and would take all memory when it is read.
MAX_CHANNELS, MAX_ROWS = 1 << 20, 1 << 16
# Largest count in a bin of a histogram: sums over bins and recordings then fit 64 bits.
MAX_CALLS = 1 << 50
# The `format` in the header of a recording, beside a version.
RECORDING_FORMAT = "nvfp4_recording"
# What a recording has of every layer, with safetensors dtypes.
RECORDING_PARTS = {
    "tokens": "I64",
    "absmax": "F32",
    "block_histogram": "I64",
    "quantisation": "F64",
}
# What it has besides of each distinct input, if second moments were recorded; the order is that of
# the TensorRefs in a Moments.
MOMENT_PARTS = {
    "moment_tokens": "I64",
    "first_moment": "F64",
    "rows": "BF16",
    "second_moment": "BF16",
    "second_moment_low": "U8",
    "absmax": "F32",
}
# Rows in a strip of a second moment, as the recorder writes them.
STRIP_ROWS = 128


def read_recording(path: Path) -> dict[str, Recorded]:
    """Read {bare layer: Recorded} from a file that the ComfyUI node in calib/ wrote.

    Raises ConvertError where it is damaged, is no recording, or has layers that saw NaN or
    infinities, whose figures mean nothing.
    """
    with opened(path) as file:
        return parse_recording(path, file)


def parse_recording(path: Path, file: BinaryIO) -> dict[str, Recorded]:
    """Check an open recording, and take every layer's figures from it; raises ConvertError."""
    tensors, metadata = parse_header(path, file)
    if (metadata.get("format"), metadata.get("version")) != (RECORDING_FORMAT, "1"):
        raise ConvertError(f"{path}: is no recording (version 1) of the NVFP4 Calibration Recorder")
    layers = defaultdict(dict)
    for ref in tensors.values():
        layer, _, part = ref.name.rpartition(".")
        layers[layer][part] = ref
    moments = read_moments(path, file, metadata, layers)
    found = []
    for layer, parts in layers.items():
        wrong = [part for part, dtype in RECORDING_PARTS.items() if not is_part(parts, part, dtype)]
        if wrong:
            raise ConvertError(f"{path}: layer {layer}: {', '.join(wrong)} missing or malformed")
        # Loaded only now, as a damaged tensor may announce any size.
        error, energy = load(parts["quantisation"], file).tolist()
        amax = float(load(parts["absmax"], file).max())
        counts = load(parts["block_histogram"], file).numpy()
        sums = read_sums(parts, file)
        means = (sums.squares, float(np.abs(sums.total).max())) if sums else ()
        if not all(map(is_figure, (amax, error, energy, *means))):
            raise ConvertError(f"{path}: layer {layer} saw NaN or Inf; record it again")
        if not ((counts >= 0) & (counts < MAX_CALLS)).all():
            raise ConvertError(f"{path}: layer {layer}: block_histogram is damaged")
        recorded = Recorded(
            amax=amax,
            channels=math.prod(parts["absmax"].shape),
            block_histogram=counts,
            error=error,
            energy=energy,
            moments=moments.get(layer),
            sums=sums,
            is_modelled=metadata.get("inputs_are") == "modelled",
        )
        found.append((path, {bare(unwrapped(layer)): recorded}))
    # A layer that was recorded compiled and then not has two names in the file: they add up.
    return add_recordings(found)


def read_sums(parts: dict[str, TensorRef], file: BinaryIO) -> Sums | None:
    """Read the sums over a layer's rows, by the layer's parts; None where there are none.

    The recorder writes them with second moments or without.
    """
    shape = parts["absmax"].shape
    refs = [parts[name] for name in ("sum", "sum_of_squares") if is_part(parts, name, "F64")]
    tokens = int(load(parts["tokens"], file))
    if len(refs) < 2 or any(ref.shape != shape for ref in refs) or tokens <= 0:
        return None
    total, squares = (load(ref, file).numpy().ravel() for ref in refs)
    return Sums(tokens, total, float(squares.sum()))


def read_moments(
    path: Path, file: BinaryIO, metadata: dict[str, str], layers: dict[str, dict[str, TensorRef]]
) -> dict[str, Moments]:
    """Return {layer: Moments}, where the statistics of each layer's input lie in the file.

    Layers with the same input share one entry, by the list `inputs` in the file's metadata. Raises
    ConvertError where that list is damaged, or a tensor is not as the recorder writes it.
    """
    try:
        shared = json.loads(metadata.get("inputs", "{}")).items()
    except (ValueError, RecursionError, AttributeError):
        raise ConvertError(f"{path}: its list of inputs is damaged") from None
    found = {}
    # The recorder stores the moments of one input with the first layer that has it.
    for layer, first in shared:
        # The list is untrusted: `first` may be of any type, or name a layer that is not there.
        parts = layers.get(first, {}) if isinstance(first, str) else {}
        refs = tuple(parts[part] for part in MOMENT_PARTS if part in parts)
        channels = parts["absmax"].shape if "absmax" in parts else ()
        own = layers.get(layer, {})
        if not (are_moments(refs, channels, own) and are_finite(refs, file)):
            raise ConvertError(f"{path}: the second moments of layer {layer} are damaged")
        found[layer] = Moments(recordings=(refs,))
    return found


def are_moments(
    refs: tuple[TensorRef, ...], channels: tuple[int, ...], layer: dict[str, TensorRef]
) -> bool:
    """Tell whether `refs` are MOMENT_PARTS of an input, with the shapes that `channels` ask for.

    `layer` are the parts of the layer that uses them, whose `absmax` must have the same channels.
    """
    if len(refs) < len(MOMENT_PARTS) or len(channels) != 1:
        return False
    if "absmax" not in layer or layer["absmax"].shape != channels or math.prod(refs[0].shape) != 1:
        return False
    _, first, rows, upper, lower, _ = (ref.shape for ref in refs)
    packed = (sum(height * width for height, width in strip_shapes(*channels)),)
    return (
        [ref.dtype for ref in refs] == [*MOMENT_PARTS.values()]
        and (first, rows[1:], upper, lower) == (channels, channels, packed, packed)
        and 0 < rows[0] <= MAX_ROWS
    )


def are_finite(refs: tuple[TensorRef, ...], file: BinaryIO) -> bool:
    """Tell whether moments are of at least one token, and their rows are finite.

    The large sums are not read here; `load_statistics` checks them when it does.
    """
    return int(load(refs[0], file)) > 0 and bool(load(refs[2], file).isfinite().all())


def strip_shapes(channels: int) -> list[tuple[int, int]]:
    """List (rows, columns) of the strips of a recorded second moment [K, K].

    Only its upper half is stored, as it is symmetric: strip i has STRIP_ROWS rows, from the
    diagonal's column on.
    """
    starts = range(0, channels, STRIP_ROWS)
    return [(min(STRIP_ROWS, channels - start), channels - start) for start in starts]


def load_statistics(moments: Moments, device: torch.device) -> Statistics:
    """Sum up what the recordings have of an input: mean, second moment and rows of a token.

    Sums are joined from their upper 16 and next 8 bits (see the recorder) and added over
    recordings, then divided by the tokens. All tensors of the result are on `device`. Raises
    ConvertError where they hold NaN or infinities.
    """
    tokens, first, packed, rows = 0, 0.0, 0.0, []
    for refs in moments.recordings:
        # In the order of MOMENT_PARTS, of which absmax, the last one, is not needed here.
        count, total, some, *packing, _ = map(load, refs)
        tokens, first = tokens + int(count), first + total
        upper, lower = (part.to(device) for part in packing)
        # float32 from its upper 16 bits and the 8 below; the last 8 are zero.
        bits = upper.view(torch.int16).to(torch.int32) << 16
        packed = packed + bits.bitwise_or_(lower.to(torch.int32) << 8).view(torch.float32)
        rows.append(some.float())
    channels = len(first)
    second, shapes = packed.new_empty(channels, channels), strip_shapes(channels)
    # Divided while packed, which is half of the work; then both halves are filled from it.
    packed = packed.div_(tokens).split([height * width for height, width in shapes])
    for strip, (height, width) in zip(packed, shapes, strict=True):
        begin = channels - width
        second[begin : begin + height, begin:] = strip.view(height, width)
        second[begin:, begin : begin + height] = strip.view(height, width).t()
    mean, rows = (first / tokens).float(), torch.cat(rows)
    if not (mean.isfinite().all() and second.isfinite().all()):
        ref = moments.recordings[0][0]
        raise ConvertError(f"{ref.path}: {ref.name} and what goes with it hold NaN or Inf")
    return Statistics(
        mean=mean.to(device),
        second=second,
        rows=rows.to(device),
        independent=count_different(rows, tokens),
    )


def count_different(rows: torch.Tensor, tokens: int) -> float:
    """Estimate how many different rows, zero ones left out, the moments are of.

    `rows` [r, K] are a sample of `tokens` rows. The estimate is from how often rows of the sample
    are equal: a prompt's text is the same at every step, and padded with zeros. At least 1.
    """
    filled = rows[rows.any(1)]
    count = len(filled)
    same = filled.unique(dim=0, return_counts=True)[1].double() if count else torch.zeros(1)
    # Of n different rows that are equally likely, a pair is equal with a chance of 1 / n.
    pairs = float((same * (same - 1)).sum())
    # No more than the rows that are not zero, by their share of the sample.
    return max(
        min(tokens * count / len(rows), count * (count - 1) / pairs if pairs else math.inf), 1.0
    )


def read_recordings(paths: Iterable[Path]) -> dict[str, Recorded]:
    """Read {bare layer: Recorded} of all recordings together. Raises ConvertError."""
    return add_recordings((path, read_recording(path)) for path in paths)


def add_recordings(recordings: Iterable[tuple[Path, dict[str, Recorded]]]) -> dict[str, Recorded]:
    """Add up what was read from several files: {bare layer: Recorded}.

    Raises ConvertError where a layer has other columns in one file than in another.
    """
    found: dict[str, Recorded] = {}
    for path, layers in recordings:
        for layer, recorded in layers.items():
            # A layer of equal name and other columns is of another model.
            if layer in found and found[layer].channels != recorded.channels:
                raise ConvertError(f"{path}: layer {layer} has other columns than in the others")
            found[layer] = found[layer] + recorded if layer in found else recorded
    return found


def is_part(parts: dict[str, TensorRef], part: str, dtype: str) -> bool:
    """Tell whether a recording has a tensor of a layer as it must be.

    `parts` is {part: TensorRef} of the layer; the tensor must be there, of `dtype`, of the size
    that its part has where that is fixed, and of no more than MAX_CHANNELS elements.
    """
    sizes = {"tokens": 1, "block_histogram": len(BIN_EDGES), "quantisation": 2}
    ref = parts.get(part)
    size = math.prod(ref.shape) if ref and len(ref.shape) < 2 else 0
    return 0 < size <= MAX_CHANNELS and ref.dtype == dtype and size == sizes.get(part, size)


def named_as_in(model: Model, recording: dict[str, Recorded]) -> dict[str, Recorded]:
    """Give a recording the names that a text encoder's file has for its layers.

    ComfyUI's modules, which were recorded, lack the part that transformers puts before the layers
    of a language model beside a vision tower.
    """
    there = {bare(ref.layer) for ref in model.linear_weights}

    def in_file(layer: str) -> str:
        renamed = f"language_model.{layer}"
        return renamed if layer not in there and renamed in there else layer

    return {in_file(layer): recorded for layer, recorded in recording.items()}


def check_recording(recording: dict[str, Recorded], model: Model) -> None:
    """Raise ConvertError if a recording is not of this model.

    None of its layers is in the model, or layers of the same name have other numbers of columns.
    """
    recording = named_as_in(model, recording)
    columns = {bare(ref.layer): ref.shape[1] for ref in model.linear_weights}
    known = recording.keys() & columns.keys()
    wrong = [layer for layer in known if recording[layer].channels != columns[layer]]
    if not known:
        raise of_another_model("--activation-stats", it_has=recording, other_has=columns)
    if wrong:
        raise of_another_model(
            "--activation-stats",
            "layers have other columns",
            it_has=(f"{layer} with {recording[layer].channels:,}" for layer in wrong),
            other_has=(f"{layer} with {columns[layer]:,}" for layer in wrong),
        )
