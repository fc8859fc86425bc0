"""Known model families and their presets, as rows of tables.

Import from here what other rooms need; `records` says what a row is and holds what families share,
`image`, `video`, `unets` and `encoders` have the rows, `table` joins them and recognises models.
Nothing here needs torch.
"""

from nvfp4.families.encoders import (
    ENCODERS,
    HEAD,
    HEAD_PREFIX,
    Size,
    TextEncoder,
    checkpoint_encoders,
    encoder_of,
    encoder_size,
    renamed_prefixes,
    with_prefixes,
)
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
    ROWS,
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
    "ENCODERS",
    "FAMILIES",
    "GENERAL_PRESETS",
    "HEAD",
    "HEAD_PREFIX",
    "MODULATION",
    "MOST_NVFP4",
    "ONE_STEP_HIGHER",
    "PRESETS",
    "ROWS",
    "TEXT_ATTENTION",
    "TRANSFORMER_BLOCKS",
    "Family",
    "Keep",
    "Size",
    "TextEncoder",
    "checkpoint_encoders",
    "encoder_of",
    "encoder_size",
    "model_prefixes",
    "recognise",
    "renamed_prefixes",
    "with_prefixes",
]
