"""Find the names that a GGUF of a language model has for the source's tensors.

llama.cpp has names of its own for all language models, and the gguf package brings the tables by
which its converters rename them: "enc.blk.0.attn_q" for "encoder.block.0.layer.0.SelfAttention.q".
Text encoders of ComfyUI have the names of transformers, which these tables begin from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nvfp4.errors import ConvertError
from nvfp4.model import Model, bare

# More blocks than any language model has. The tables are made for so many, whatever a header says.
MOST_BLOCKS = 512
# What llama.cpp's converters drop from names of models that see images, too.
LANGUAGE_PART = "language_model."


class GgufNames(NamedTuple):
    """Hold what a GGUF of a language model calls the source's tensors.

    tensors: {bare name in the source: name in the GGUF}, of what both have.
    layers: bare names of the source's layers that such a GGUF has names for; a vision tower is in a
        GGUF of its own.
    """

    tensors: dict[str, str]
    layers: frozenset[str]


def language_names(path: Path, architecture: str, stored: Iterable[str], model: Model) -> GgufNames:
    """Match a GGUF with the source's tensors by the tables of the gguf package.

    architecture: the GGUF's `general.architecture`; stored: names of its tensors. Returns empty
    records where that is none of a language model's, or fits nothing. Raises ConvertError where the
    names are llama.cpp's, and the gguf package does not know the architecture.
    """
    import gguf  # takes a third of a second, which conversions without a GGUF need not wait for

    stored = set(stored)
    numbers = {m[1] for name in stored if (m := re.match(r"(?:enc\.)?blk\.(\d{1,9})\.", name))}
    if not numbers:
        return GgufNames({}, frozenset())
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise ConvertError(
            f"{path}: has llama.cpp's names, of architecture {architecture[:60]!r}, which the gguf "
            "library here does not know: pip install --upgrade gguf"
        )
    table = gguf.get_tensor_name_map(known[architecture], min(len(numbers), MOST_BLOCKS))
    found = {name: theirs for name in model.tensors if (theirs := name_in(table, name))}
    return GgufNames(
        {bare(name): theirs for name, theirs in found.items() if theirs in stored},
        frozenset(bare(name).removesuffix(".weight") for name in found),
    )


def name_in(table: object, name: str) -> str | None:
    """Return llama.cpp's name for a tensor of the source, None where its table has none."""
    for form in (name, bare(name)):
        for spelt in (form, form.replace(LANGUAGE_PART, "", 1)):
            if found := table.get_name(spelt, try_suffixes=(".weight", ".bias")):
                return found
    return None
