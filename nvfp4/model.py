"""Records of a checkpoint: tensors, names, prefixes, LoRA patches.

A Model is what the headers of a file, or of its shards, say; it holds no weights. `read.checkpoint`
makes one, `source` replaces some of its TensorRefs by such as are decoded or patched when they are
read, and `read.tensors` reads them. A record is never changed in place.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from nvfp4.dtypes import FP4_MATMUL_K, SOURCE_FLOATS
from nvfp4.files import Stamp
from nvfp4.modules import EMBEDDING, not_linear, starred

# What checkpoints put before the names of a diffusion model's tensors. A longer prefix comes before
# one that it begins with.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.")
# Of these, what ComfyUI does not strip: it recognises no model in a file that has it.
UNREAD_PREFIXES = ("diffusion_model.",)
# Of these, what ComfyUI looks for first, and takes for the model's where more than so many names
# have it (comfy/model_detection.py, unet_prefix_from_state_dict).
COUNTED_PREFIXES, LEAST_COUNTED = ("model.diffusion_model.", "model.model.", "net."), 5
# What ComfyUI strips in a checkpoint that holds more than the diffusion model.
COMFYUI_PREFIX = "model.diffusion_model."
# A prefix counts only if at least 10 % of a file's tensor names have it; else a few stray names
# would make the whole diffusion model look like something beside it.
LEAST_PREFIXED = 0.1
# What programs put into a layer's name when they wrap a module: torch.compile, FSDP and activation
# checkpointing anywhere in it, DataParallel and DDP at its beginning, before or after a prefix.
WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module|_forward_module"
WRAPPED = re.compile(rf"(?<![^.])({WRAPPERS})\.|\.({WRAPPERS})$")
WRAPPED_WHOLE = re.compile(
    rf"(?:module\.)*({'|'.join(re.escape(prefix) for prefix in PREFIXES)}|)(?:module\.)*"
)
# What the names of other parts begin with, in files whose diffusion model has no prefix.
OTHER_PARTS = (
    "text_encoders.", "text_encoder.", "text_encoder_2.", "cond_stage_model.", "conditioner.",
    "first_stage_model.", "vae.", "pretransform.", "clip_l.", "clip_g.", "clip_h.", "t5xxl.",
    "clip_l_vision.", "embedder.model.", "audio_vae.", "vocoder.", "text_embedding_projection.",
)  # fmt: skip
# Token embeddings of language models, which ComfyUI loads as text encoders. "model." is a part of
# their names and no prefix, as in whole diffusion models: those have embedders of the time besides.
LANGUAGE_MODELS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
TIME_EMBEDDERS = ("model.t_embedder", "model.x_embedder", "model.time_embed")
# The prefix of a text encoder in a checkpoint, as ComfyUI writes and reads it.
ENCODER_PREFIX = re.compile(r"text_encoders\.\w+\.transformer\.")
# What a file is recognised by: names whose first number is one of these, of so many characters, and
# so many of them. Published models have up to 700 such names.
TOLD_NUMBERS, MAX_TOLD, MAX_LINES = ("0", "1", "2"), 200, 5000
# The end of names of tensors with JSON by which a file chooses a module's attention in ComfyUI;
# they are no part of a weight, and go over as they are.
ATTENTION_CONFIG = ".comfy_attention.config"
# Beginnings of the prefixes that ComfyUI looks for (comfy/model_detection.py). A layer configured
# in the header under such a name makes it look for the model there.
COMFYUI_PREFIXES = ("model.", "net.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Tell where a tensor lies in a file, and what is done with it when it is read.

    name: as the file has it, prefix included.
    dtype: as safetensors names it, such as "BF16": a key of SAFETENSORS_BITS.
    path, begin, nbytes: the file, the absolute offset of the tensor's data in it, and its size.
    coding: how a quantised weight is decoded when it is read; None for what is no such weight.
    is_kept: whether it is part of a quantised layer of the source that is copied as it is.
    config: the JSON for `comfy_quant` of such a layer; it is kept with the layer's weight.
    kept_as: the title of its format, which the weight has, too; "" for one that no row describes.
    patches: the LoRAs' changes that are added, in this order, when it is read.
    module: which module of the user's ComfyUI has it, as that answered: "" for a linear layer, else
        its class; None where it was not asked, and names and shapes tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    nbytes: int
    coding: Coding | None = None
    is_kept: bool = False
    config: str = ""
    kept_as: str = ""
    patches: tuple[Patch, ...] = ()
    module: str | None = None

    @property
    def paths(self) -> set[Path]:
        """List the files that its values are made of: its own, and those of LoRAs."""
        parts = (part for patch in self.patches for part in patch.parts.values())
        return {self.path, *(part.path for part in parts)}

    @property
    def is_changed(self) -> bool:
        """Tell whether reading gives float32 values that differ from what is stored."""
        return self.coding is not None or bool(self.patches)

    @property
    def layer(self) -> str:
        """Name the module whose weight this is, prefix kept: ComfyUI's metadata calls it so."""
        return self.name.removesuffix(".weight")

    @property
    def is_float(self) -> bool:
        """Tell whether it holds numbers of 16 or 32 bits once it is read; an empty one does not."""
        return (self.dtype in SOURCE_FLOATS or self.coding is not None) and self.nbytes > 0

    @property
    def is_matrix(self) -> bool:
        """Tell whether it is a float matrix named `*.weight`: a linear layer's, or an embedding."""
        return self.is_float and len(self.shape) == 2 and self.name.endswith(".weight")

    @property
    def is_linear_weight(self) -> bool:
        """Tell whether it is taken for a linear layer's weight.

        That is a float matrix named `*.weight`, unless a class of ComfyUI has something else of
        that name, such as an embedding; of a model that the user's ComfyUI knows, that tells.
        """
        if self.module is not None:
            return self.is_matrix and not self.module
        return self.is_matrix and not not_linear(own_name(self.layer))

    @property
    def is_embedding(self) -> bool:
        """Tell whether a class of ComfyUI has an embedding of its own operations for it."""
        if self.module is not None:
            return self.is_matrix and self.module == EMBEDDING.rpartition(" ")[2]
        found = not_linear(own_name(self.layer)) if self.is_matrix else None
        return found is not None and found.kind == EMBEDDING

    @property
    def is_expert_bank(self) -> bool:
        """Tell whether it looks like the weights of several experts in one tensor, [E, N, K].

        Such tensors are in numbered blocks, and large in both of the last dimensions, where a
        convolution has a small kernel.
        """
        named = self.name.endswith((".weight", "_proj")) or "expert" in self.name
        in_block = "*." in starred(self.name)
        is_large = len(self.shape) == 3 and min(self.shape[1:]) >= FP4_MATMUL_K
        return self.is_float and named and in_block and is_large and self.shape[0] > 1

    @property
    def is_convolution(self) -> bool:
        """Tell whether it looks like the weight of a convolution in a numbered block.

        Those of UNets do as much work as their linear layers. What embeds patches, in no block, is
        left out: it does next to none.
        """
        is_one = self.name.endswith(".weight") and len(self.shape) in (3, 4, 5)
        in_block = "*." in starred(bare(self.layer))
        return self.is_float and is_one and in_block and not self.is_expert_bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """Tell how a stored weight is decoded.

    title: of its format; the rows of `formats` stand above this room.
    parts: {suffix: the tensor}, what it is decoded from besides its codes; {} where `scale` is all.
    scale: the one scale of the whole weight, a float32; None where it has several.
    """

    title: str
    parts: dict[str, TensorRef] = field(default_factory=dict)
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Describe what one layer of a LoRA file does to one tensor.

    kind: "lora", "loha", "lokr", "diff" or "set": a key of `numeric.lora.CHANGES`.
    parts: the tensors that the change is computed from, such as "up", "down" and "alpha".
    strength: what the change is multiplied by.
    rows: the rows of the tensor that are changed: a q, k or v of a fused layer, or all.
    swapped: whether the two halves of the change belong in the other order, as diffusers has scale
        and shift of the last modulation.
    scale: what the change is multiplied by besides, where `parts` have no "alpha": alpha over rank
        as the file's metadata tell it.
    """

    kind: str
    parts: dict[str, TensorRef]
    strength: float
    rows: slice
    swapped: bool = False
    scale: float = 1.0


class Lora(NamedTuple):
    """Name a LoRA file to merge, and the strength that its changes are multiplied by."""

    path: Path
    strength: float


class ModelPart(NamedTuple):
    """Name a text encoder of a file that is converted: its row, a key of ENCODERS, and its prefix.

    The prefix is "" where the encoder is the whole file.
    """

    row: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Hold what a checkpoint's headers say.

    tensors: by name, in the order of the file, and of the shards where there are several.
    metadata: the header's `__metadata__`, merged where there are several shards.
    files: the file, or the index followed by its shards.
    stamps: of the files that are read while converting; what changes meanwhile is refused.
    quantised: how many layers of a source's diffusion model are quantised already, by the title
        of their format.
    encoders: text encoders that are converted; the diffusion model, if there is one, is besides.
    """

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    quantised: dict[str, int] = field(default_factory=dict)
    encoders: tuple[ModelPart, ...] = ()

    @property
    def nbytes(self) -> int:
        """Count the bytes of all tensors as they are stored, headers left out."""
        return sum(ref.nbytes for ref in self.tensors.values())

    @property
    def shards(self) -> int:
        """Count the shards; 0 where the model is one file."""
        return len(self.files) - 1

    @property
    def beside(self) -> dict[str, TensorRef]:
        """Collect the tensors that are not of what is converted, such as a VAE's."""
        prefix = diffusion_prefix(self.tensors)
        converted = tuple(part.prefix for part in self.encoders if part.prefix)
        return {
            name: ref
            for name, ref in self.tensors.items()
            if is_beside(name, prefix) and not name.startswith(converted)
        }

    @property
    def main(self) -> Model:
        """Return the model with all that lies beside the diffusion model left as it is."""
        return replace(self, encoders=tuple(part for part in self.encoders if not part.prefix))

    def alone(self, part: ModelPart) -> Model:
        """Return a text encoder of this file as a model of its own, its names without prefix."""
        tensors = {
            name: replace(ref, name=name)
            for old, ref in self.tensors.items()
            if old.startswith(part.prefix) and (name := old.removeprefix(part.prefix))
        }
        whole = part._replace(prefix="")
        return Model(tensors=tensors, metadata={}, files=self.files, encoders=(whole,))

    def part_of(self, name: str) -> ModelPart | None:
        """Find the text encoder that a tensor of this name is of; None for all others."""
        return next((part for part in self.encoders if name.startswith(part.prefix)), None)

    @property
    def linear_weights(self) -> list[TensorRef]:
        """List what looks like a linear layer's weight of the diffusion model, in file order."""
        beside = self.beside
        refs = self.tensors.values()
        return [ref for ref in refs if ref.is_linear_weight and ref.name not in beside]


class Source(NamedTuple):
    """Hold a model to convert, and notes on what it is taken for, each a line of the report."""

    model: Model
    notes: tuple[str, ...] = ()


def bare(name: str) -> str:
    """Strip one of PREFIXES from a tensor's or layer's name, if it begins with one.

    Names of models, calibration files, LoRAs and lists are compared in this form.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def own_name(name: str) -> str:
    """Strip from a name the prefix of its part of a file: a text encoder's, or the model's.

    ComfyUI's classes are looked up by these names.
    """
    found = ENCODER_PREFIX.match(name)
    return bare(name[found.end() :] if found else name)


def unwrapped(name: str) -> str:
    """Strip from a layer's name what WRAPPED and WRAPPED_WHOLE tell; a prefix stays.

    "diffusion_model.blocks.0._orig_mod.q" -> "diffusion_model.blocks.0.q". Readers of files that
    name layers of a running model begin with it: the model's own file has no such names.
    """
    return WRAPPED_WHOLE.sub(r"\1", WRAPPED.sub("", name), count=1)


def diffusion_prefix(names: Iterable[str]) -> str:
    """Find the prefix of the diffusion model's tensors among all names of a file.

    Returns what ComfyUI takes for it, or else the first of PREFIXES that at least LEAST_PREFIXED of
    the names have, or "", which it is in a text encoder's own file. What has not that prefix, such
    as a text encoder or a VAE in the same file, is not converted.
    """
    names = list(names)
    counts = {p: sum(name.startswith(p) for name in names) for p in COUNTED_PREFIXES}
    most = max(counts, key=counts.__getitem__)
    if counts[most] > LEAST_COUNTED:
        return most
    if is_language_model(names):
        return ""
    least = LEAST_PREFIXED * len(names)
    usual = (p for p in PREFIXES if sum(name.startswith(p) for name in names) >= least)
    return next(usual, "") if names else ""


def is_language_model(names: Collection[str]) -> bool:
    """Tell whether a file's names are those of a language model, and of no diffusion model."""
    return any(name in names for name in LANGUAGE_MODELS) and not any(
        name.startswith(TIME_EMBEDDERS) for name in names
    )


def header_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Write the lines `name [shape]` by which models and other files are recognised.

    shapes: {name: shape}. Of a row of blocks the first ones stand for all, and what exceeds any
    published file is left out, so that a hostile one costs no time.
    """
    lines = []
    for name, shape in shapes.items():
        number = re.search(r"(?<![^.])\d+(?![^.])", name[:MAX_TOLD])
        if number is None or number[0] in TOLD_NUMBERS:
            lines.append(f"{name[:MAX_TOLD]} {[*shape]}")
        if len(lines) == MAX_LINES:
            break
    return "\n".join(lines)


def is_beside(name: str, prefix: str) -> bool:
    """Tell whether a name is of something beside the diffusion model, whose `prefix` is given."""
    return not name.startswith(prefix) or (not prefix and name.startswith(OTHER_PARTS))


def compiled(pattern: str) -> re.Pattern:
    """Compile a regular expression that a user gave, without Python's warnings on stderr.

    Raises ValueError, whose text ends a sentence, for all that is wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    # Some 500 nested brackets are enough for it.
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except (re.error, OverflowError) as error:
        raise ValueError(error) from error
