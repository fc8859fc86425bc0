"""What each class of graphics cards multiplies fast, and how fast: a row for each class.

Throughputs are published figures of one card of the class, dense (not with 2:4 sparsity), with sums
in float32 where factors are floats: ComfyUI multiplies so, comfy_kitchen's `scaled_mm_v2` passes
`use_fast_accum=False`. They are peaks: reading memory, rotating and quantising activations are not
in them, so that what follows from them is an estimate. It is one for GeForce cards: professional
and data-centre cards (RTX A6000, L40S, A100, H100) multiply the same formats, but 16-bit floats at
twice the rate in proportion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What tensor cores multiply a layer of a format in, by the format's word on the command line: W4A8
# and W6A8 are decoded to INT8, MXFP8 is FP8 with scales of blocks.
UNITS = {
    "nvfp4": "FP4",
    "w4a8": "INT8",
    "w6a8": "INT8",
    "int8": "INT8",
    "fp8": "FP8",
    "mxfp8": "FP8",
    "16bit": "16-bit",
}
# The first version of ComfyUI that loads a format, and of comfy-kitchen where ComfyUI asks for an
# older one than the format needs.
COMFYUI_SINCE = {
    "nvfp4": "0.10",
    "w4a8": "0.31",
    "w6a8": "0.33",
    "int8": "0.27",
    "fp8": "0.10",
    "mxfp8": "0.29",
}
KITCHEN_SINCE = {"w6a8": "0.2.40"}
# Formats that only comfy_kitchen multiplies; the matmul of FP8 is torch's own.
KITCHEN_FORMATS = ("nvfp4", "w4a8", "w6a8", "int8", "mxfp8")
# ComfyUI switches comfy_kitchen's CUDA kernels off with an older torch (comfy/quant_ops.py).
NEEDS_CUDA_13 = "torch built for CUDA 13.0 or newer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Describe a class of cards.

    title: the class for people, with what tells that a card is one of it.
    fast: words of UNITS for what every card of the class multiplies without decoding it to 16 bits,
        and "16bit". `model` is faster by it; `why` names cards of the class that are not.
    why: where that is from.
    model: the card that `rates` are of.
    rates: {unit: TFLOPS, or TOPS of integers}; a unit that the class lacks is not in it.
    source, url: where the rates are from.
    capability: the compute capability that the class begins with; None where cards have none.
    needs: what ComfyUI needs there for KITCHEN_FORMATS.
    half: the --dtype that 16-bit tensors have where none is given.
    """

    title: str
    fast: tuple[str, ...]
    why: str
    model: str
    rates: dict[str, float]
    source: str
    url: str
    capability: tuple[int, int] | None
    needs: str = NEEDS_CUDA_13
    half: str = "bfloat16"

    def unit(self, word: str) -> str:
        """Tell what a format is multiplied in: a value of UNITS, 16-bit's where it is not fast."""
        return UNITS[word if word in self.fast else "16bit"]

    @property
    def series(self) -> str:
        """Name the cards of the class: "GeForce RTX 40"."""
        return self.title.partition(": ")[2].partition(" (")[0]

    def rate(self, word: str) -> float:
        """Tell the throughput at which a format is multiplied."""
        return self.rates[self.unit(word)]


# By the words that --card takes, the newest class first. Compute capabilities are those that
# comfy_kitchen 0.2.40 asks for (MIN_SM_VERSION of its layouts: NVFP4 and MXFP8 10.0, FP8 8.9, W4A8
# 8.0, INT8 7.5), and comfy/model_management.py of ComfyUI 0.33 (supports_*_compute).
CARDS = {
    "blackwell": Card(
        title="Blackwell: GeForce RTX 50 (compute capability 10.0 or more)",
        fast=("nvfp4", "w4a8", "w6a8", "int8", "fp8", "mxfp8", "16bit"),
        capability=(10, 0),
        why="NVFP4 and MXFP8 from compute capability 10.0; NVIDIA gives no figure for MXFP8, which "
        "counts as FP8 here",
        model="GeForce RTX 5090",
        rates={"FP4": 1676, "INT8": 838, "FP8": 419, "16-bit": 209.5},
        source="NVIDIA RTX Blackwell GPU Architecture whitepaper 1.1, appendix A",
        url="https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
        "nvidia-rtx-blackwell-gpu-architecture.pdf",
    ),
    "ada": Card(
        title="Ada: GeForce RTX 40 (compute capability 8.9)",
        fast=("w4a8", "w6a8", "int8", "fp8", "16bit"),
        capability=(8, 9),
        why="FP8 from compute capability 8.9",
        model="GeForce RTX 4090",
        rates={"INT8": 660.6, "FP8": 330.3, "16-bit": 165.2},
        source="NVIDIA Ada GPU Architecture whitepaper 2.1, appendix A",
        url="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "ampere": Card(
        title="Ampere: GeForce RTX 30 (compute capability 8.0 to 8.7)",
        fast=("w4a8", "w6a8", "int8", "16bit"),
        capability=(8, 0),
        why="W4A8 and W6A8 from compute capability 8.0",
        model="GeForce RTX 3090",
        rates={"INT8": 284, "16-bit": 71},
        source="NVIDIA Ampere GA102 GPU Architecture whitepaper 2.0, appendix A",
        url="https://www.nvidia.com/content/PDF/"
        "nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    "turing": Card(
        title="Turing: GeForce RTX 20 (compute capability 7.5)",
        fast=("int8", "16bit"),
        capability=(7, 5),
        why="INT8 from compute capability 7.5; no bfloat16 there, so that 16-bit is float16",
        model="GeForce RTX 2080 Ti Founders Edition",
        rates={"INT8": 227.7, "16-bit": 56.9},
        source="NVIDIA Turing GPU Architecture whitepaper, table 1",
        url="https://images.nvidia.com/aem-dam/en-zz/Solutions/design-visualization/technologies/"
        "turing-architecture/NVIDIA-Turing-Architecture-Whitepaper.pdf",
        half="float16",
    ),
    "rdna": Card(
        title="RDNA 4 and 3: Radeon RX 9000 and 7000",
        fast=("w4a8", "w6a8", "int8", "16bit"),
        capability=None,
        why="what comfy_kitchen's HIP kernels multiply on both. RDNA 3 multiplies INT8 no faster "
        "than 16-bit (512 operations per clock each). FP8 is fast on RDNA 4 alone, and AMD's page "
        "has no figure for it",
        model="Radeon RX 9070 XT",
        rates={"INT8": 389.3, "16-bit": 194.6},
        source="AMD's operations per clock and compute unit (2048 and 1024), times 64 compute "
        "units, times 2.97 GHz",
        url="https://gpuopen.com/learn/using_matrix_core_amd_rdna4",
        needs="torch for ROCm, and comfy-kitchen 0.2.31 or newer",
    ),
}
# What the words are, such as "ada = GeForce RTX 40".
CARD_NAMES = ", ".join(f"{word} = {card.series}" for word, card in CARDS.items())


# A GeForce or Radeon as people write it, "rtx4070 Ti" or "50": the number is the group.
PEOPLE_SAY = re.compile(
    r"(?:nvidia|amd|geforce|radeon|rtx|rx|[ _-])*(\d{4}|\d\d)(?:[ _-]?(?:ti|super|xtx?|gre|d|m))*"
)


def card_called(name: str) -> str:
    """Name the class of a GeForce or Radeon by its number; any other name is returned as it is.

    Numbers of professional cards, such as RTX 4000, were given to several classes.
    """
    found = PEOPLE_SAY.fullmatch(name.lower())
    number = found[1] if found else ""
    for word, card in CARDS.items():
        for series in re.findall(r"\d+", card.series):
            # RTX 50 tells two digits of the number, Radeon RX 9000 one.
            told, many = series.removesuffix("000"), len(number) >= len(series)
            is_professional = len(series) == 2 and number.endswith("000")
            if many and number.startswith(told) and not is_professional:
                return word
    return name


def card_of(capability: tuple[int, int]) -> str:
    """Name the class of an NVIDIA card by its compute capability, "" for one older than all.

    Cards between two classes, such as the H100 with 9.0, multiply what the older one does.
    """
    known = ((word, card.capability) for word, card in CARDS.items() if card.capability)
    return next((word for word, least in known if capability >= least), "")
