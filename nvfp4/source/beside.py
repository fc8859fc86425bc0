"""Carry over what lies beside the diffusion model: text encoders, a VAE, whatever a file holds.

Nothing of it is converted. Tensors keep their bytes, a quantised layer its configuration, and a
part in scaled FP8 its own marker, as ComfyUI reads each part of a file by its own prefix.
"""

from __future__ import annotations

import dataclasses
import json

from nvfp4.errors import examples, gigabytes, in_number
from nvfp4.model import Model, TensorRef
from nvfp4.notes import Note, Rank
from nvfp4.read.tensors import load
from nvfp4.stored.defects import Finding
from nvfp4.stored.layers import StoredLayer
from nvfp4.stored.lint import lint


def kept_part(ref: TensorRef, layer: StoredLayer) -> TensorRef | None:
    """Mark a part of a layer that is copied as it is; the weight carries the configuration.

    Returns None for `comfy_quant`, which is written anew, as the source may have the configuration
    in the header alone. Its text stays to the byte where ComfyUI reads the same of both.
    """
    suffix = ref.name.rpartition(".")[2]
    if suffix == "comfy_quant":
        return None
    text = json.dumps(layer.config)
    if layer.in_tensor == layer.config:
        text = bytes(load(layer.parts["comfy_quant"]).tolist()).decode()
    if suffix != "weight":
        return dataclasses.replace(ref, is_kept=True)
    title = layer.format.title if layer.format else ""
    return dataclasses.replace(ref, config=text, kept_as=title, is_kept=True)


def carried(model: Model, layers: dict[str, StoredLayer]) -> dict[str, TensorRef | None]:
    """List the tensors beside the diffusion model as they go over: {name: TensorRef}.

    layers: all of the file. None stands for `comfy_quant`, as `kept_part` says. What has no
    configuration, such as scaled FP8, stays untouched with its scales and its marker.
    """
    found = dict(model.beside)
    for name in {*found}:
        layer, _, suffix = name.rpartition(".")
        stored = layers.get(layer)
        if stored and stored.weight and stored.config and suffix in stored.parts:
            found[name] = kept_part(found[name], stored)
    return found


def flaws_beside(model: Model, layers: dict[str, StoredLayer]) -> list[Finding]:
    """Find what headers show to be wrong with layers beside the diffusion model.

    They go over with all their flaws; only a configuration in one form alone is mended.
    """
    names = {name.rpartition(".")[0] for name in model.beside}
    found = lint(model, {name: layers[name] for name in layers if name in names}, values=False)
    return [finding for finding in found if finding.defect not in ("one form", "two forms")]


def note_beside(model: Model) -> list[str]:
    """Make the note on what lies beside the diffusion model, if anything does."""
    refs = model.beside
    if not refs:
        return []
    size = gigabytes(sum(ref.nbytes for ref in refs.values()))
    what = f"tensors ({size}) are not of the diffusion model and go over as they are"
    return [Note(f"{in_number(len(refs), what)}: {examples(refs)}", Rank.INFORMATION)]
