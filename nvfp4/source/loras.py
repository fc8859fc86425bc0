"""Find the tensors that LoRA files change, and what fits them.

Trainers name layers in many ways: as ComfyUI does, as diffusers does, with dots or underscores,
with prefixes. Every name is brought to one spelling, in which the model's names are looked up. The
result are Patches in the model's TensorRefs; `numeric.lora` computes with them when a tensor is
read. To add a spelling, add a row to SPELLINGS or DIFFUSERS.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch

from nvfp4.dtypes import VIEWED
from nvfp4.errors import EXAMPLES, ConvertError, examples
from nvfp4.model import Lora, Model, Patch, Source, TensorRef, bare
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.lora import merge
from nvfp4.read.checkpoint import read_header

# A key may consist of prefixes alone, and each one costs a search: strip at most so many.
MAX_PREFIXES = 10
# A LoRA's key is a layer and a part of it; the name of the group that matches is the kind of patch.
# The spellings are those that ComfyUI loads (comfy/weight_adapter, comfy/lora.py).
LORA_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<lora>up|down|mid|A|B)(?:\.default)?(?:\.weight)?"
    r"|\.hada_(?P<loha>w[12]_[ab]|t[12])"
    r"|\.lokr_(?P<lokr>w[12](?:_[ab])?|t2)"
    r"|\.(?:(?P<diff>diff|w_norm)|(?P<bias>diff_b|b_norm)|(?P<set>set_weight))"
    r"|\.(?P<scaling>alpha|dora_scale))"
)
# Parts that have several names, by the one that `numeric.lora` knows.
LORA_PARTS = {"A": "down", "B": "up", "w_norm": "diff", "diff_b": "diff", "b_norm": "diff"}
# What trainers put before a layer's name. In the second line: kohya's, of which Wan Fun has two
# underscores, OneTrainer's and SimpleTuner's.
LORA_PREFIX = re.compile(
    r"(model\.)?diffusion_model\.|net\.|unet\.|transformer\.|base_model\.model\."
    r"|lora_unet_+|lora_transformer_|lycoris_"
)
# Keys of known kinds that are not merged, by what a note calls them.
NOT_MERGED = {
    "of a text encoder": r"lora_te|text_encoder|clip_|t5xxl",
    "of OFT": r".+\.(oft_|rescale$)",
    "of GLoRA": r".+\.[ab][12]\.weight$",
    "of PEFT's DoRA": r".+\.lora_magnitude_vector",
    "a new shape of a layer": r".+\.reshape_weight$",
}
# Some layers have one name in the published file and another one in ComfyUI. Rows bring both to
# one: (regular expression, replacement), on names with _ for every dot, as kohya's trainers write.
SPELLINGS = (
    (r"(_mod|modulation)_linear", r"\1_lin"),
    (r"mlp_fc1", "mlp_0"),
    (r"mlp_fc2", "mlp_2"),
    (r"_norm_(q|k)(uery|ey)_norm", r"_\1_norm"),
    (r"(_in|_embedder)_(mlp_0|linear_1)", r"\1_in_layer"),
    (r"(_in|_embedder)_(mlp_2|linear_2)", r"\1_out_layer"),
)
# How diffusers names the layers of a model, in the same form: diffusers' block, the native block,
# {diffusers' layer: native layer}. A group named `rows` is a part of a fused layer, see FUSED_ROWS;
# one named `swapped` has scale and shift in the other order.
DIFFUSERS = (
    # Flux and Hunyuan Video.
    (r"transformer_blocks_(\d+)_", r"double_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "img_attn_qkv",
        r"attn_add_(?P<rows>[qkv])_proj": "txt_attn_qkv",
        "attn_to_out_0": "img_attn_proj",
        "attn_to_add_out": "txt_attn_proj",
        "norm1_linear": "img_mod_lin",
        "norm1_context_linear": "txt_mod_lin",
        "ff_(net_0_proj|linear_in)": "img_mlp_0",
        "ff_(net_2|linear_out)": "img_mlp_2",
        "ff_context_(net_0_proj|linear_in)": "txt_mlp_0",
        "ff_context_(net_2|linear_out)": "txt_mlp_2",
        r"attn_norm_([qk])": r"img_attn_\2_norm",
        r"attn_norm_added_([qk])": r"txt_attn_\2_norm",
    }),
    (r"single_transformer_blocks_(\d+)_", r"single_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "linear1",
        r"(?P<rows>proj_mlp)": "linear1",
        # Flux 2, which has the layer fused already.
        "attn_to_qkv_mlp_proj": "linear1",
        "proj_out|attn_to_out": "linear2",
        "norm_linear": "modulation_lin",
        r"attn_norm_([qk])": r"\2_norm",
    }),
    (r"single_blocks_(\d+)_", r"single_blocks_\1_", {r"linear1_(?P<rows>qkv)": "linear1"}),
    ("", "", {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        r"time_text_embed_timestep_embedder_(\w+)": r"time_in_\1",
        r"time_text_embed_text_embedder_(\w+)": r"vector_in_\1",
        r"time_text_embed_guidance_embedder_(\w+)": r"guidance_in_\1",
        "proj_out": "final_layer_linear",
        "norm_out_(?P<swapped>linear)": "final_layer_adaLN_modulation_1",
        # Z-Image.
        "all_x_embedder_2-1": "x_embedder",
        "all_final_layer_2-1_(.+)": r"final_layer_\1",
    }),
    (r"((?:layers|context_refiner|noise_refiner)_\d+)_attention_", r"\1_attention_", {
        r"to_(?P<rows>[qkv])": "qkv",
        "to_out_0": "out",
        r"norm_([qk])": r"\2_norm",
    }),
    # Wan, in names that ComfyUI does not load LoRAs by.
    (r"(blocks_\d+)_", r"\1_", {
        r"attn1_(?:to_(?=[qkv])|(?=norm_))(\w+)": r"self_attn_\2",
        r"attn2_(?:to_(?=[qkv])|(?=norm_[qk]$))(\w+)": r"cross_attn_\2",
        r"attn2_add_([kv])_proj": r"cross_attn_\2_img",
        "attn1_to_out_0": "self_attn_o",
        "attn2_to_out_0": "cross_attn_o",
        "ffn_net_0_proj": "ffn_0",
        "ffn_net_2": "ffn_2",
    }),
)  # fmt: skip
# The rows of DIFFUSERS, compiled: (a whole name's regular expression, its native name).
NATIVE_NAMES = [
    (re.compile(block + f"(?:{layer})"), native_block + native)
    for block, native_block, layers in DIFFUSERS
    for layer, native in layers.items()
]
# Where a part begins and ends among a fused layer's rows, in multiples of its columns. Flux's
# `linear1` has q, k, v and an MLP of four times the width.
FUSED_ROWS = {"q": (0, 1), "k": (1, 2), "v": (2, 3), "qkv": (0, 3), "proj_mlp": (3, 7)}


def canonical(name: str) -> str:
    """Bring a layer's name to the one spelling in which models and LoRA files are compared.

    Dots become underscores, as kohya's names cannot be brought back to dots, and then the rows of
    SPELLINGS are applied in turn.
    """
    name = name.replace(".", "_")
    for spelling, other in SPELLINGS:
        name = re.sub(f"{spelling}(?=(_bias)?$)", other, name)
    return name


def locate(layer: str, names: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Find the model's tensor that a LoRA's layer is, and which part of it.

    layer: as the LoRA's key has it. names: {canonical name: tensor} of the model. The name is tried
    as it is and as one of diffusers, then again without its first prefix, and so on. Returns the
    tensor's name and the groups of the row of DIFFUSERS that matched, or None.
    """
    for _ in range(MAX_PREFIXES):
        name = canonical(layer)
        if name in names:
            return names[name], {}
        for pattern, native in NATIVE_NAMES:
            match = pattern.fullmatch(name)
            if match and (native := match.expand(native)) in names:
                return names[native], match.groupdict()
        # Some trainers put several prefixes one before another.
        if not (prefix := LORA_PREFIX.match(layer)):
            break
        layer = layer[prefix.end() :]
    return None


def group_keys(path: Path) -> tuple[dict[str, dict[str, dict[str, TensorRef]]], list[str]]:
    """Read a LoRA file's header, and group its keys by layer and kind.

    Returns {layer: {kind: {part: TensorRef}}} with layers named as in the file, and the keys that
    are no part of a layer. A layer has one kind of patch and, beside it, perhaps one for its bias;
    alpha and dora_scale are put among the parts of that kind. Raises ConvertError where a layer has
    two kinds or a part twice, or a dtype that cannot be computed with.
    """
    layers, unknown = defaultdict(lambda: defaultdict(dict)), []
    for key, ref in read_header(path)[0].items():
        if not (match := LORA_KEY.fullmatch(key)):
            unknown.append(key)
            continue
        # Integers of 8 bits are codes without their scale; others no conversion computes with.
        if ref.dtype not in TORCH_DTYPES or ref.dtype in VIEWED:
            raise ConvertError(f"{path}: {key} is {ref.dtype}; give the LoRA in a 16-bit type")
        kind = match.lastgroup
        part = LORA_PARTS.get(match[kind], match[kind])
        parts = layers[match["layer"]][kind]
        if part in parts:
            raise ConvertError(f"{path}: {key} and {parts[part].name} are the same thing twice")
        parts[part] = ref
    for layer, kinds in layers.items():
        # alpha and dora_scale say nothing of the kind, and may come before the parts that do.
        scaling = kinds.pop("scaling", {})
        if len(kinds.keys() - {"bias"}) > 1:
            raise ConvertError(f"{path}: {layer} is {' and '.join(kinds)} at once; keep one kind")
        for kind in kinds.keys() - {"bias"}:
            kinds[kind] |= scaling
        if not kinds:
            unknown += [ref.name for ref in scaling.values()]
    return layers, unknown


def read_lora(lora: Lora, model: Model) -> tuple[dict[str, list[Patch]], list[str]]:
    """Match a LoRA file with a model, by its header alone.

    Returns {tensor: patches}, in which q, k and v of a fused layer are patches of their own, and a
    line for each kind of thing that cannot be merged. Raises ConvertError for a file that
    `group_keys` refuses, and where two of its layers are the same rows of a tensor.
    """
    layers, unmatched = group_keys(lora.path)
    # Norms of Flux are named `scale` where others are named `weight`.
    names = {canonical(re.sub(r"\.(weight|scale)$", "", bare(n))): n for n in model.tensors}
    patches, misfits, packed = defaultdict(list), [], []
    for layer, kinds in layers.items():
        # A layer that is not found has the name "", which no tensor has.
        name, found = locate(layer, names) or ("", {})
        for kind, parts in kinds.items():
            target = f"{name.removesuffix('.weight')}.bias" if kind == "bias" else name
            if target not in model.tensors:
                unmatched += [ref.name for ref in parts.values()]
                continue
            patch = Patch(
                kind="diff" if kind == "bias" else kind,
                parts=parts,
                strength=lora.strength,
                rows=rows_of(found.get("rows"), model.tensors[name]),
                swapped="swapped" in found,
            )
            # Two spellings of one layer in a file: merging both would count its change twice.
            if any(other.rows == patch.rows for other in patches[target]):
                raise ConvertError(f"{lora.path}: {layer} and another name are both {target}")
            misfit = find_misfit(patch, model.tensors[target])
            if model.tensors[target].is_kept:
                packed.append(target)
            elif misfit:
                misfits.append(misfit)
            else:
                patches[target].append(patch)
    return patches, lora_problems(misfits, packed, unmatched)


def lora_problems(misfits: list[str], packed: list[str], unmatched: list[str]) -> list[str]:
    """Tell what of a LoRA cannot be merged, counted: a line for each kind of problem.

    misfits: sentences of `find_misfit`; packed: tensors that the source has quantised already;
    unmatched: keys that are of no tensor of the model.
    """
    problems = []
    if misfits:
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        problems.append(f"does not fit the model: {misfits[0]}{more}")
    if packed:
        what = "layers are quantised in the source already, so nothing can be merged into them"
        problems.append(f"{len(packed)} {what}: {examples(packed)}")
    if unmatched:
        problems.append(describe_unmatched(unmatched))
    return problems


def rows_of(part: str | None, target: TensorRef) -> slice:
    """Find the rows of a fused layer that are its q, k, v or MLP.

    part: a key of FUSED_ROWS, or None for all rows. target: the fused tensor [N, K], whose columns
    tell the width that its parts are multiples of.
    """
    if part is None:
        return slice(None)
    begin, end = FUSED_ROWS[part]
    return slice(begin * target.shape[-1], end * target.shape[-1])


def find_misfit(patch: Patch, target: TensorRef) -> str:
    """Say why a patch does not fit a tensor, or "".

    The merge itself is tried on torch's meta device, which computes shapes without any data, so
    that this check and the merge can never disagree.
    """
    shown = ", ".join(f"{ref.name} {list(ref.shape)}" for ref in patch.parts.values())
    try:
        # A missing part is a KeyError of the merge; shapes that do not fit are its other errors.
        parts = {part: torch.empty(ref.shape, device="meta") for part, ref in patch.parts.items()}
        merge(patch, parts, torch.empty(target.shape, device="meta"))
    except KeyError as error:
        return f"{shown}: {error.args[0]} is missing"
    except (IndexError, RuntimeError, ValueError):
        rows = "" if patch.rows == slice(None) else f"rows {patch.rows.start} on of "
        return f"{shown} do not fit {rows}{target.name} {list(target.shape)}"
    return ""


def describe_unmatched(keys: list[str]) -> str:
    """Tell how many keys match nothing, what they are where that is known, and the first few."""
    # Known kinds are counted from the beginning of a key, prefixes not stripped.
    kinds = {what: sum(bool(re.match(row, k)) for k in keys) for what, row in NOT_MERGED.items()}
    told = "".join(f", {count} {what}" for what, count in kinds.items() if count)
    return f"{len(keys)} keys match no tensor of the model{told}: {examples(keys)}"


def merge_loras(loras: Iterable[Lora], model: Model, *, partial: bool) -> Source:
    """Have LoRAs merged into a model when its tensors are read; notes tell of each LoRA.

    partial: whether to go on where some of a LoRA cannot be merged; that is noted then. Several
    LoRAs are merged in the order given. Raises ConvertError where a LoRA has nothing for the model
    or, without `partial`, not all of it fits.
    """
    tensors, notes = dict(model.tensors), []
    for lora in loras:
        patches, problems = read_lora(lora, model)
        merged = sum(map(bool, patches.values()))
        notes += [f"{lora.path.name}: merged into {merged} tensors at strength {lora.strength:g}"]
        notes += problems
        if not merged or (problems and not partial):
            end = "--lora-partial goes on" if merged else "nothing of it can be merged"
            problems = [f"{lora.path}: {problem}" for problem in problems[-EXAMPLES:]]
            last = problems.pop() if problems else f"{lora.path}: holds no LoRA"
            raise ConvertError(*problems, f"{last}; {end}")
        for name, found in patches.items():
            old = tensors[name]
            tensors[name] = dataclasses.replace(old, patches=(*old.patches, *found))
    return Source(dataclasses.replace(model, tensors=tensors), tuple(notes))
