"""All known model families in the order in which they are looked for, and how one is recognised.

`plan.presets` applies the rows. To add a family, add a row to the table of its kind (`image`,
`video`, `unets`), before those whose keys it has as well, and its names and shapes under
tests/families with `tests/support/make_families.py`.
"""

from __future__ import annotations

import itertools
import re

from nvfp4.families.audio import AUDIO_FAMILIES
from nvfp4.families.encoders import ENCODERS, encoder_of
from nvfp4.families.image import IMAGE_FAMILIES
from nvfp4.families.image_others import OTHER_IMAGE_FAMILIES
from nvfp4.families.records import ANY_FAMILY
from nvfp4.families.solid import SOLID_FAMILIES
from nvfp4.families.unets import UNET_FAMILIES
from nvfp4.families.video import VIDEO_FAMILIES
from nvfp4.model import Model, bare, header_text

# Families are looked for in this order: Flux's keys are in Flux 2 and Chroma as well, so these come
# first, and models that make images are often built like older ones that make videos.
FAMILIES = {
    **IMAGE_FAMILIES,
    **OTHER_IMAGE_FAMILIES,
    **VIDEO_FAMILIES,
    **AUDIO_FAMILIES,
    **SOLID_FAMILIES,
    **UNET_FAMILIES,
}
# Every row by its name, text encoders besides.
ROWS = FAMILIES | ENCODERS
# All names of blocks, each once, for reports that group layers by block.
TRANSFORMER_BLOCKS = tuple(
    dict.fromkeys(
        name
        for family in (ANY_FAMILY, *ROWS.values())
        for name in (*itertools.chain(*family.blocks), *family.beside)
    )
)


def model_prefixes(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Find the prefixes behind which the names of a file are those of a known family.

    shapes: {name: shape}. Returns them in sorted order, "" for names without prefix; [] where no
    family is recognised.
    """
    header, found = header_text(shapes), set()
    for family in FAMILIES.values():
        first, *others = family.keys
        # Prefixes of more than six parts are hostile.
        matches = re.finditer(rf"^((?:[\w-]+\.){{0,6}}?){first}", header, re.MULTILINE)
        for prefix in {match[1] for match in matches}:
            keys = (rf"^{re.escape(prefix)}{key}" for key in others)
            if all(re.search(key, header, re.MULTILINE) for key in keys):
                found.add(prefix)
    return sorted(found)


def recognise(model: Model) -> tuple[str, str]:
    """Find the model's row in ROWS: its name, and the variant's; each "" if there is none.

    Only names and shapes are looked at.
    """
    name, size = encoder_of({ref.name: ref.shape for ref in model.tensors.values()})
    if name:
        return name, size
    # One line for each tensor, so that a key may match name and shape together.
    header = header_text({bare(ref.name): ref.shape for ref in model.tensors.values()})

    def there(key: str) -> bool:
        return re.search(rf"^{key}", header, re.MULTILINE) is not None

    for name, family in FAMILIES.items():
        if all(map(there, family.keys)):
            return name, next((kind for kind, key in family.variants.items() if there(key)), "")
    return "", ""


# Presets for models of any family, with their lines in --list-presets.
GENERAL_PRESETS = {
    "auto": "the family that the source is recognised as, smart where there is none (default)",
    "smart": "any model by its structure: 16-bit outside the repeated blocks, 8-bit for attention "
    "V and feed-forward down projections, NVFP4 for the rest of the blocks",
    "all": "NVFP4 for every linear layer that ComfyUI does not recognise a model by",
    "none": "nothing but what --include names",
}
# What --preset takes, "auto" first; `--help` lists them in this order.
PRESETS = (
    "auto",
    *FAMILIES,
    *(name for name, row in ENCODERS.items() if not row.half_only),
    *list(GENERAL_PRESETS)[1:],
)
