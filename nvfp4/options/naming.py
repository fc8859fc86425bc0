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


def format_word(options: Any) -> str:
    """Tell in one word what a conversion writes, by its options alone.

    options: an Options that is checked. "mixed" where a GGUF, a layer config or a size decides
    layer by layer; else the format that most layers get: the recipe's, or the smallest of --formats
    or --card.
    """
    if options.gguf or options.layer_config or options.target_size or options.target_ratio:
        return "mixed"
    return RECIPES[options.recipe].format or options.allowed[0]


def source_name(source: Path) -> str:
    """Name a source without its suffix and its precision, as "wan2.2_ti2v_5B".

    A folder, and a file whose name says nothing, are called by the folder's name; one inside a
    model's folder, such as `transformer`, by that of both.
    """
    name = source.name
    for suffix in (INDEX, SUFFIX):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    else:
        name = ""
    if not name or NO_NAMES.fullmatch(name):
        # The folder one is in has its name in its whole path alone.
        folder = (source.parent if name else source).absolute()
        inner = INNER_FOLDERS.get(folder.name)
        name = folder.name if inner is None else folder.parent.name
        return (PRECISION_WORDS.sub("", name) or "model") + (inner or "")
    return PRECISION_WORDS.sub("", name) or name


def is_folder(source: Path) -> bool:
    """Tell whether a source is a folder of shards, named as such or by its index."""
    return source.name.lower().endswith(INDEX) or source.is_dir()


def made_output(options: Any) -> Path:
    """Name the file that a conversion writes where OUTPUT names none.

    options: an Options that is checked, whose output is a folder, or None. Without a folder it is
    the one that a file lies in, or that a folder of shards lies in, so that these stay by
    themselves. Raises ConvertError for a name that is taken: nobody asked to replace that file.
    """
    source, folder = options.source, options.output
    if folder is None:
        folder = source.parent
        if is_folder(source):
            shards = source if source.is_dir() else source.parent
            # The parent of "." is found in its whole path alone.
            folder = shards.parent if shards.name else shards.absolute().parent
    output = folder / f"{source_name(source)}_{format_word(options)}{SUFFIX}"
    taken = options.written_as(output)
    if exists(taken) and not options.dry_run:
        raise ConvertError(f"{taken}: exists already; give OUTPUT as {output} to replace it")
    return output
