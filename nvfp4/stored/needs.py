"""Tell which ComfyUI a file needs, by the formats of its layers and what else is in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.formats.base import Format
from nvfp4.stored.layers import StoredLayer
from nvfp4.work import SMOOTHING_SINCE, version_key

# What every file of this program needs.
OLDEST = Format.since


class Need(NamedTuple):
    """Name the first version of ComfyUI that loads all of a file, and what asks for it.

    version: as "0.31"; "" where any version with quantised layers does. formats: what needs it.
    kitchen: the first version of comfy-kitchen, "" where any does that ComfyUI asks for.
    """

    version: str
    formats: tuple[str, ...] = ()
    kitchen: str = ""

    def __str__(self) -> str:
        """Tell it in a sentence's end, or "" where nothing is needed."""
        if not self.version:
            return ""
        kitchen = f" with comfy-kitchen {self.kitchen}" if self.kitchen else ""
        return f"needs ComfyUI {self.version}{kitchen} or newer ({', '.join(self.formats)})"


def needed_comfyui(layers: Iterable[StoredLayer]) -> Need:
    """Find the newest of the versions that a file's configured layers ask for.

    Formats that every version has are not named.
    """
    found, kitchen = defaultdict(dict), ""
    for layer in layers:
        form = layer.configured
        if layer.weight is None or form is None:
            continue
        asks = {form.title: form.since}
        if "pre_quant_scale" in layer.parts:
            asks["pre_quant_scale"] = SMOOTHING_SINCE
        if layer.is_looked_up:
            asks[f"embeddings in {form.kind}"] = form.embedding_since
        for what, version in asks.items():
            found[version_key(version)][what] = version
        kitchen = max(kitchen, form.since_kitchen, key=version_key)
    newest = max(found, default=())
    if newest <= version_key(OLDEST):
        return Need("")
    return Need(next(iter(found[newest].values())), tuple(sorted(found[newest])), kitchen)
