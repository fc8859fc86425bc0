"""Name the file to write where OUTPUT is a folder, or is left out.

The name is made of the source's own and of what the options ask for; no file is opened for it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nvfp4.errors import ConvertError
from nvfp4.files import exists
from nvfp4.options.formats import RECIPES
from nvfp4.virtual import VirtualPath

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
# What a source's name says of its precision, at its end: "_bf16", "-fp8_e4m3fn_scaled".
PRECISION_WORDS = re.compile(
    r"[-_.](?:(?:fp|bf|f)(?:16|32)|b?float(?:16|32)|16bit|fp8(?:_e4m3fn|_e5m2)?(?:_scaled)?)$",
    re.IGNORECASE,
)
# Names of files that thousands of models have; the folder's tells which one it is.
NO_NAMES = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-\d{5})?", re.IGNORECASE)
# Folders inside a model's folder, and what of them tells two models of one folder apart.
INNER_FOLDERS = {
    "transformer": "",
    "unet": "",
    "transformer_2": "_2",
    "high_noise_model": "_high_noise",
    "low_noise_model": "_low_noise",
}


class NameTakenError(ConvertError):
    """Refuse a made name that a file has already."""

    def beside_others(self, source: object) -> str:
        """Tell it of one of several models, which may be left out."""
        return f"{self}, or leave out {source}"


def format_word(options: Any) -> str:
    """Tell in one word what a conversion writes, by its options alone.

    options: an Options that is checked. "mixed" where a GGUF, a layer config or a size decides
    layer by layer; else the format that most layers get: the recipe's, or the smallest of --formats
    or --card.
    """
    if options.gguf or options.layer_config or options.is_sized:
        return "mixed"
    return RECIPES[options.recipe].format or options.allowed[0]


def stem_of(source: Path) -> str:
    """Return a file's name without its suffix; "" for a folder, and for names that say nothing."""
    for suffix in (INDEX, SUFFIX):
        if source.name.lower().endswith(suffix):
            stem = source.name[: -len(suffix)]
            return "" if NO_NAMES.fullmatch(stem) else stem
    return ""


def model_folder(source: Path) -> Path:
    """Return the folder of a model's files, which a source is or lies in; its name is no dot."""
    folder = source.parent if source.name.lower().endswith((INDEX, SUFFIX)) else source
    # "." and ".." have names in their whole paths alone.
    return folder.resolve() if folder.name in ("", "..") else folder


def source_name(source: Path) -> str:
    """Name a source without its suffix and its precision, as "wan2.2_ti2v_5B".

    A folder, and a file whose name says nothing, are called by the folder's name; one inside a
    model's folder, such as `transformer`, by that of both.
    """
    if stem := stem_of(source):
        return PRECISION_WORDS.sub("", stem) or stem
    folder = model_folder(source).absolute()
    inner = INNER_FOLDERS.get(folder.name)
    folder = folder if inner is None else folder.parent
    name = folder.own_name if isinstance(folder, VirtualPath) else folder.name
    return (PRECISION_WORDS.sub("", name) or "model") + (inner or "")


def made_output(options: Any) -> Path:
    """Name the file that a conversion writes where OUTPUT names none.

    options: an Options that is checked, whose output is a folder, or None. Without a folder it is
    the one that a file lies in, or that a folder of shards lies in, so that these stay by
    themselves; of a virtual source, the current one. Raises NameTakenError for a name that
    a file has: nobody asked to replace it.
    """
    source, folder = options.source, options.output
    if folder is None:
        has_folder = not (stem_of(source) or source.name.lower().endswith(SUFFIX))
        folder = model_folder(source).parent if has_folder else source.parent
        folder = Path() if isinstance(source, VirtualPath) else folder
    output = folder / f"{source_name(source)}_{format_word(options)}{SUFFIX}"
    taken = options.written_as(output)
    if exists(taken) and not options.dry_run:
        raise NameTakenError(f"{taken}: exists already; to replace it, give OUTPUT as {output}")
    return output
