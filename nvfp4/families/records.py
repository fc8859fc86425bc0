"""Records of known model families, and what several of them have in common.

A family names formats by their titles ("FP8", "16-bit"), as families are listed without torch.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

# What stands for the format of 8 bits that a conversion has: INT8, or FP8 where that is asked for.
EIGHT_BITS = "8-bit"
# Transformer blocks that stay 16-bit at each end, unless a family or an option says otherwise.
EDGE_BLOCKS = 2
# Models with a larger share of their linear weights in NVFP4 are known to give noise, Wan and image
# models alike.
MOST_NVFP4 = 0.9


class Keep(NamedTuple):
    """Name layers inside a family's blocks that get more than NVFP4.

    layers: a regular expression that is searched for in their names, without the model's prefix.
    precision: EIGHT_BITS, for which --formats and --card choose the format, or "16-bit".
    why: the reason that the report gives, with the tool or file that does the same.
    named: the layers in a word or two, for a table; "" where the reason begins with them.
    """

    layers: str
    precision: str
    why: str
    named: str = ""

    @property
    def what(self) -> str:
        """Say in a few words which layers these are."""
        return self.named or re.split("[:,;(]| reaches ", self.why, maxsplit=1)[0].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describe models of one architecture: how to recognise one, and what its preset does.

    title: the family's name for people.
    keys: regular expressions for the beginning of a header's lines, `name [shape]`, without the
        prefix of names. All of them have to be there.
    variants: {name: key}; the first one that is there names the variant in notes.
    blocks: names of the transformer blocks, in rows by the order they run in: edge blocks are at
        the ends of each row.
    beside: names of blocks that have no ends, such as control blocks.
    outside: layers that every whole model of the family has beside its blocks, or one of several
        between bars, as models without a VAE have others: a shard lacks some.
    together: modules that a model has all of or none, as its variants add them.
    uneven: whether its first or last blocks lack by design what most blocks have.
    edge_blocks: how many blocks stay 16-bit at each end.
    edges: the precision of these blocks, "16-bit" or EIGHT_BITS.
    keeps: layers of the blocks that get more than NVFP4; the first that matches wins.
    full_precision: layers that the preset marks for full-precision matmul; "" for none.
    makes: what it makes, for --list-presets: "image", "video", "audio", "3D", "text". Where images
        are the only thing, a note warns of almost all NVFP4.
    known_as: what people search for besides title and variants: other names, and the beginnings of
        published files' names.
    """

    title: str
    keys: tuple[str, ...]
    variants: dict[str, str] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    uneven: bool = False
    edge_blocks: int = EDGE_BLOCKS
    edges: str = "16-bit"
    keeps: tuple[Keep, ...] = ()
    full_precision: str = ""
    makes: tuple[str, ...] = ("video",)
    known_as: tuple[str, ...] = ()

    @property
    def inside(self) -> re.Pattern:
        """Compile a pattern for names inside a block; its groups are the block's name and number.

        Block numbers of more than nine digits are hostile, and match nothing.
        """
        names = [*itertools.chain(*self.blocks), *self.beside]
        return re.compile(rf"({'|'.join(map(re.escape, names))})\.?(\d{{1,9}})\.")


# What K-quants of llama.cpp give more bits in diffusion models, by names that families share
# (city96/ComfyUI-GGUF, tools/lcpp.patch).
ATTENTION_V = Keep(
    r"\.(v|v_img|to_v|add_v_proj|v_proj|wv|value)$", EIGHT_BITS, "attention V: Q6_K in a Q5_K_M"
)
ATTENTION_QKV = Keep(
    r"\.((img_|txt_)?attn[._](img_attn_|txt_attn_)?qkv|attention\.qkv|(img|txt)_attn_qkv)$",
    EIGHT_BITS,
    "fused attention QKV: Q6_K in a Q5_K_M",
    "QKV",
)
DOWN_PROJECTION = Keep(
    r"\.(ffn\.2|net\.2|feed_forward\.w2|mlp\.layer2|mlp\.down_proj|mlp\.w2|fc2)$",
    EIGHT_BITS,
    "feed-forward down projection: Q6_K in a Q5_K_M",
    "down projection",
)
# What --preset smart keeps, for models of unknown families.
ONE_STEP_HIGHER = (ATTENTION_V, ATTENTION_QKV, DOWN_PROJECTION)
# Linear layers that compute shift, scale and gate of a block from the time step.
MODULATION = Keep(
    r"(_mod\.(lin|linear)|\.modulation\.(lin|linear))$",
    EIGHT_BITS,
    "modulation reaches every token: 16-bit in sglang's NVFP4 Flux",
    "modulation",
)
TEXT_ATTENTION = Keep(
    r"\.txt_attn[._]",
    EIGHT_BITS,
    "text attention: 16-bit in tritant/ComfyUI_Kitchen_nvfp4_Converter",
)


def by_structure(layers: str, what: str, precision: str = EIGHT_BITS) -> Keep:
    """Keep layers of a family of which nobody has published which are sensitive.

    layers: a regular expression, as in Keep. what: what kind of layers these are, for the reason.
    """
    return Keep(layers, precision, f"{what}: by structure, as nothing is published on it")


# For Cosmos-Predict2 and Anima, which is built like it.
ADALN_AND_MLP = (
    Keep(
        r"\.adaln_modulation_",
        "16-bit",
        "modulation reaches every token, and is small: 16-bit in bedovyy/comfy-dit-quantizer",
        "modulation",
    ),
    Keep(
        r"\.mlp\.|\.v_proj$",
        EIGHT_BITS,
        "MLP and V: FP8 in bedovyy/comfy-dit-quantizer, noise in NVFP4 "
        "(silveroxides/convert_to_quant#41)",
    ),
)
# What the families that are built like Flux have in common.
FLUX_BLOCKS = (("double_blocks", "single_blocks"),)
FLUX_KEY = r"double_blocks\.0\.img_attn\.norm\.key_norm\.(weight|scale) "
# For a model that is of no family: its blocks may have any of the usual names.
ANY_FAMILY = Family(
    title="unknown",
    keys=(),
    blocks=(("blocks", "transformer_blocks", "double_blocks", "single_blocks", "layers"),),
    edge_blocks=0,
)
