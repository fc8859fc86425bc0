"""Known model families and their presets, as rows of tables.

Import from here what other rooms need; `records` says what a row is and holds what families share,
`image`, `video` and `unets` have the rows, `table` joins them and recognises models by them.
Nothing here needs torch.
"""

from nvfp4.families.records import (
    ADALN_AND_MLP,
    ANY_FAMILY,
    ATTENTION_QKV,
    ATTENTION_V,
    DOWN_PROJECTION,
    EDGE_BLOCKS,
    EIGHT_BITS,
    MODULATION,
    MOST_NVFP4,
    ONE_STEP_HIGHER,
    TEXT_ATTENTION,
    Family,
    Keep,
)
from nvfp4.families.table import (
    FAMILIES,
    GENERAL_PRESETS,
    PRESETS,
    TRANSFORMER_BLOCKS,
    model_prefixes,
    recognise,
)

__all__ = [
    "ADALN_AND_MLP",
    "ANY_FAMILY",
    "ATTENTION_QKV",
    "ATTENTION_V",
    "DOWN_PROJECTION",
    "EDGE_BLOCKS",
    "EIGHT_BITS",
    "FAMILIES",
    "GENERAL_PRESETS",
    "MODULATION",
    "MOST_NVFP4",
    "ONE_STEP_HIGHER",
    "PRESETS",
    "TEXT_ATTENTION",
    "TRANSFORMER_BLOCKS",
    "Family",
    "Keep",
    "model_prefixes",
    "recognise",
]
