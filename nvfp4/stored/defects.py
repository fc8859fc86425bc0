"""Every known defect of a file, and what ComfyUI does about it.

DEFECTS is a table of data: `stored.lint`, `verify` and the formats find defects and name rows of
it, the report prints a row's words. To add a defect, add its row, the check that finds it, and a
broken file to `tests/support/broken.py`, which shows what ComfyUI does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from nvfp4.dtypes import FP4_MATMUL_K, FP4_MATMUL_N
from nvfp4.formats.scaled_fp8 import MARKER


class Outcome(IntEnum):
    """Rank what a defect does in ComfyUI: the worst of a file's decides its verdict."""

    # ComfyUI is not disturbed; other programs may be.
    LOADS = 0
    # Every step takes longer; the picture is no worse.
    SLOWER = 1
    # The picture is visibly poorer.
    WORSE = 2
    # Noise, or black.
    WRONG = 3
    # An error when the model is loaded or first run.
    FAILS = 4


@dataclass(frozen=True, slots=True)
class Defect:
    """Describe a way in which a file breaks ComfyUI's contract: a row of DEFECTS.

    outcome: what it does in ComfyUI.
    what: what is wrong, about several layers or tensors, whose names follow it in a report.
    consequence: how ComfyUI takes it.
    remedy: what to do about it.
    """

    outcome: Outcome
    what: str
    consequence: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Report one defect of a file.

    defect: its key in DEFECTS.
    name: the layer or tensor that has it, prefix included, or the file.
    detail: what is there instead of what should be, for the report; "" if the name says enough.
    """

    defect: str
    name: str
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        """Look up what this defect does in ComfyUI."""
        return DEFECTS[self.defect].outcome


# The outcomes were seen in ComfyUI 0.29 and 0.33 with files that were broken in this way;
# tests/whole/test_consumer.py breaks and loads them again.
DEFECTS = {
    # The safetensors library pads its header, and sorts tensors by the size of their items.
    "unaligned": Defect(
        Outcome.LOADS,
        "tensors start at no multiple of their item size",
        "ComfyUI copies them; programs that map the file may refuse it",
        "write the file again with a current safetensors library",
    ),
    "one form": Defect(
        Outcome.LOADS,
        "layers have only one of comfy_quant and the header's entry",
        "ComfyUI is content with either; other loaders read the one or the other",
        "write both, identical",
    ),
    # The header's entries are written over the tensors before loading (comfy/utils.py).
    "two forms": Defect(
        Outcome.LOADS,
        "layers have a comfy_quant that differs from the header's entry",
        "ComfyUI follows the header; other loaders follow the tensor",
        "write both, identical",
    ),
    "stray": Defect(
        Outcome.LOADS,
        "scales or configurations belong to no quantised weight",
        "ComfyUI warns of unexpected keys and ignores them",
        "leave them out, or quantise the weight",
    ),
    # ComfyUI calls .view() on block scales and .to() on codes (comfy/ops.py).
    "same bits": Defect(
        Outcome.LOADS,
        "tensors have another dtype of the same size",
        "ComfyUI reads the same bits; other loaders take them for numbers",
        "store them in the dtypes of their format: for NVFP4, U8 and F8_E4M3",
    ),
    "padding": Defect(
        Outcome.LOADS,
        "block scales are not zero in the padding of their tiles",
        "ComfyUI's own decoding never reads it; FP4 matmul does",
        "fill the padding with zeros",
    ),
    "not scalar": Defect(
        Outcome.LOADS,
        "scales are float64, or of one element but no scalars",
        "ComfyUI takes them all the same; other loaders may not",
        "store them as F32 with shape []",
    ),
    # Decoding broadcasts such scales; the formats of this package have a single one.
    "per row": Defect(
        Outcome.LOADS,
        "FP8 scales are one for every row",
        "ComfyUI decodes such weights rightly; FP8 matmul takes a single scale",
        "mark these layers for full-precision matmul, or quantise them with one scale",
    ),
    "unknown options": Defect(
        Outcome.LOADS,
        "configurations have options of their format that are not read here",
        "ComfyUI may know them; nothing is told of the values of these layers",
        "nothing",
    ),
    # The kernel flattens scales, decoding for a LoRA broadcasts them (comfy_kitchen, int8.py).
    "flat scales": Defect(
        Outcome.LOADS,
        "INT8 scales of rows are [N] and not [N, 1]",
        "ComfyUI multiplies rightly; where a LoRA is applied, it takes them for scales of columns",
        "store them with the shape [N, 1]",
    ),
    # Newer versions decode INT8 that is marked on every call (comfy/ops.py, Linear).
    "idle": Defect(
        Outcome.LOADS,
        "layers have a mark or an input scale that their format does not take",
        "ComfyUI measures these activations on every call; 0.33 passes over a mark, 0.38 heeds it",
        "leave it out",
    ),
    "slow shape": Defect(
        Outcome.SLOWER,
        f"W4A4 layers have columns % {FP4_MATMUL_K} != 0, or rows % {FP4_MATMUL_N} != 0 and a bias",
        "every call decodes the weight instead of multiplying in FP4",
        "keep these layers FP8 or 16-bit",
    ),
    "output layer": Defect(
        Outcome.WORSE,
        "layers whose rows ComfyUI recognises the model by are packed",
        "ComfyUI loads them, as these need no padding; 4 bits in the output layer show",
        "keep these layers 16-bit",
    ),
    # 448 is the largest number of E4M3, which the input is cast to.
    "clamped": Defect(
        Outcome.WORSE,
        "FP8 layers have neither an input scale nor full-precision matmul",
        "ComfyUI casts their input to FP8 unscaled and clamps it at 448",
        "add input scales, or mark them for full-precision matmul",
    ),
    # A converter that casts all float32 tensors to the model's dtype casts scales, too.
    "float16 scale": Defect(
        Outcome.WORSE,
        "scales are not float32",
        "ComfyUI takes the rounded or overflowed values",
        "store scales as F32, whatever the model's own dtype",
    ),
    "bad scale": Defect(
        Outcome.WRONG,
        "scales are NaN, infinite, zero or negative",
        "ComfyUI multiplies by them: black frames or noise",
        "quantise these layers again",
    ),
    "smoothed": Defect(
        Outcome.WRONG,
        "layers of a format other than NVFP4 have a pre_quant_scale",
        "ComfyUI reads none there, and multiplies a weight that was divided by it: noise",
        "convert the original again",
    ),
    "no codebook": Defect(
        Outcome.WRONG,
        "4-bit codes of W4A8 have no codebook, and scales that belong to one",
        "ComfyUI takes the codes for the integers from -8 to 7: noise",
        "convert the original again",
    ),
    "values": Defect(
        Outcome.WRONG,
        "tensors do not decode to what the source holds",
        "ComfyUI computes with other weights: noise",
        "convert again from this source",
    ),
    # Of another model, as a LoRA that was merged makes it, or coarser: see NEAR in `verify`.
    "near": Defect(
        Outcome.WORSE,
        "tensors are a little off from what the source holds",
        "ComfyUI computes with what is stored, which is close to the source: no noise",
        "was a LoRA merged? give --merge-lora; a file stored coarser, as plain FP8, is off as well",
    ),
    "other source": Defect(
        Outcome.WRONG,
        "the file given as --source is of another model",
        "nothing is known of the values of this file",
        "give the source that this file was made from",
    ),
    "missing": Defect(
        Outcome.WRONG,
        "tensors of the source are not in the file",
        "ComfyUI warns of missing keys and starts with weights of no meaning",
        "convert again from this source",
    ),
    # No defect of ours: rounding by statistics changes biases on purpose.
    "moved bias": Defect(
        Outcome.LOADS,
        "biases are not the source's, in a file that was rounded by --activation-stats",
        "their change makes up for the mean error of the weights; ComfyUI adds them as any",
        "nothing",
    ),
    "extra": Defect(
        Outcome.LOADS,
        "tensors of the file are not in the source",
        "nothing says whether they are right",
        "give the source that this file was made from",
    ),
    # FP8 that was merely cast needs no scale: see LARGE_WEIGHT in `stored.lint`.
    "unscaled": Defect(
        Outcome.WRONG,
        "FP8 weights have no scale that is known, and are or may be codes of one",
        "ComfyUI takes them as they are: noise",
        "quantise these layers again",
    ),
    "integers": Defect(
        Outcome.WRONG,
        "integer weights have neither comfy_quant nor an entry in the header",
        "ComfyUI takes the integers for the weights: noise, or a stop at their shape",
        "configure them, or give the 16-bit weights",
    ),
    # The cast is to the format's storage dtype: values are rounded, not reinterpreted.
    "weight dtype": Defect(
        Outcome.WRONG,
        "weights have another dtype than their format stores",
        "ComfyUI casts them to it: other weights",
        "quantise these layers again",
    ),
    # The form with scale_weight is read only without current metadata (comfy/utils.py).
    "unread scale": Defect(
        Outcome.WRONG,
        "FP8 weights have a scale that nothing makes ComfyUI read: no configuration, or "
        f"scale_weight without the {MARKER} tensor or beside _quantization_metadata",
        "ComfyUI takes them unscaled: noise",
        f"configure weight_scale layers; for scale_weight add {MARKER} and drop that metadata",
    ),
    "scaled parameter": Defect(
        Outcome.WRONG,
        "FP8 weights with a scale are no linear layers' in ComfyUI",
        "ComfyUI takes the FP8 codes and leaves out their scale: noise",
        "keep these layers 16-bit",
    ),
    "no linear layer": Defect(
        Outcome.FAILS,
        "packed weights are no linear layers' in ComfyUI, but embeddings or parameters",
        "ComfyUI stops at their shape",
        "keep these layers 16-bit",
    ),
    "unconfigured": Defect(
        Outcome.FAILS,
        "packed weights have neither comfy_quant nor an entry in the header",
        "ComfyUI takes the packed bytes for numbers and stops at their shape",
        "write both for every layer, if it is packed in ComfyUI's order: ModelOpt has another",
    ),
    # The names by which they are told are in `nvfp4.quantisers`.
    "other program": Defect(
        Outcome.FAILS,
        "layers are packed by another program, in tensors of its own",
        "ComfyUI's loader finds no weights there; that program's own nodes may load them",
        "take the 16- or 32-bit model, or load this file with that program",
    ),
    "empty": Defect(
        Outcome.FAILS,
        "files hold no tensors",
        "ComfyUI does not recognise a model in them",
        "get the file again",
    ),
    # The prefixes it looks for are in comfy/model_detection.py.
    "prefix": Defect(
        Outcome.FAILS,
        "names have a prefix or a wrapper's part that ComfyUI does not strip",
        "ComfyUI recognises no model in such names",
        "convert the original model again, which takes it off, or rename the tensors",
    ),
    # For NVFP4, ComfyUI raises "Missing NVFP4 scales for layer ..." (comfy/ops.py).
    "no scale": Defect(
        Outcome.FAILS,
        "quantised weights lack a scale",
        "ComfyUI stops while loading",
        "quantise these layers again",
    ),
    "groups": Defect(
        Outcome.FAILS,
        "columns are no whole groups of those that are rotated together, or none can be so large",
        "ComfyUI stops when the layer is loaded or first runs",
        "keep these layers not rotated, or 16-bit",
    ),
    # comfy_kitchen takes none at 6 bits (backends/eager/w4a8_int8.py, validate_w4a8_operands).
    "extra codebook": Defect(
        Outcome.FAILS,
        "layers have a codebook and codes of 6 bits",
        "ComfyUI stops when the layer first runs",
        "leave the codebook out",
    ),
    "no weight": Defect(
        Outcome.FAILS,
        "configurations are for layers that have no weight",
        "ComfyUI stops, or does not recognise the model",
        "name layers as the file does, with its prefix",
    ),
    "dtype": Defect(
        Outcome.FAILS,
        "scales have another dtype than their format says",
        "ComfyUI stops when the layer first runs",
        "quantise these layers again",
    ),
    "shape": Defect(
        Outcome.FAILS,
        "tensors have another shape than their format says",
        "ComfyUI stops when the layer is loaded or first runs (unless just flattened)",
        "quantise these layers again",
    ),
    "unknown format": Defect(
        Outcome.FAILS,
        "configurations cannot be read or name a format that ComfyUI does not know",
        "ComfyUI stops while loading",
        "name a format of ComfyUI's, such as nvfp4 or int8_tensorwise",
    ),
    "header": Defect(
        Outcome.FAILS,
        "_quantization_metadata is not JSON with an object of layers",
        "ComfyUI stops while loading",
        "write it right, or leave it out",
    ),
    # Which layers these are, `modules.shape_read` says.
    "recognised by": Defect(
        Outcome.FAILS,
        "packed or padded layers are among those whose shape ComfyUI recognises the model by",
        "ComfyUI may take it for another model, and stop",
        "keep these layers 16-bit",
    ),
    # What a ComfyUI itself answered: `asking` asks it, and these rows tell of that version alone.
    "asked unrecognised": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises no diffusion model",
        "it stops: could not detect the model's type",
        "take the file repackaged for ComfyUI, or update ComfyUI",
    ),
    "asked unknown": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises neither the source nor the output made of it",
        "it stops: could not detect the model's type",
        "take the model repackaged for ComfyUI, or update ComfyUI; for a custom node's model leave "
        "out --comfyui and COMFYUI_ROOT",
    ),
    "asked changed": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises another model than in the source",
        "it builds a model of other sizes, and stops or gives noise",
        "keep the layers whose shape it reads 16-bit, with --exclude",
    ),
    "asked stops": Defect(
        Outcome.FAILS,
        "tensors do not go into this ComfyUI's model",
        "it stops while loading",
        "keep these layers 16-bit, with --exclude",
    ),
    "asked error": Defect(
        Outcome.FAILS,
        "loading ends with an error in this ComfyUI",
        "it stops while loading",
        "add the scale, configuration or tensor that the error names, or update ComfyUI",
    ),
    "asked shape": Defect(
        Outcome.FAILS,
        "weights are of another shape than this ComfyUI's layers",
        "it loads them, and stops at the first step",
        "keep the layers whose shape it reads 16-bit, with --exclude",
    ),
    "asked unpacked": Defect(
        Outcome.WRONG,
        "packed weights are of modules that take none in this ComfyUI",
        "it takes the codes for weights, without their scales: noise",
        "configure them where they are in Linear; keep all others 16-bit",
    ),
    "asked unread": Defect(
        Outcome.WRONG,
        "parts of quantised layers are not read by this ComfyUI",
        "it computes without them: noise",
        "update ComfyUI, or convert without the option that adds them",
    ),
    "asked missing": Defect(
        Outcome.WRONG,
        "tensors of this ComfyUI's model are not in the file",
        "it warns of missing keys and starts with weights of no meaning",
        "take a file that is whole",
    ),
    "asked partly": Defect(
        Outcome.LOADS,
        "parts of the file could not be asked about",
        "this ComfyUI cannot build them without their values",
        "nothing",
    ),
    "asked unexpected": Defect(
        Outcome.LOADS,
        "tensors are of no module of this ComfyUI's model",
        "it warns of unexpected keys and leaves them out",
        "nothing",
    ),
}


def grouped(found: Iterable[Finding]) -> dict[str, list[str]]:
    """Group findings by their defect: {defect: names, each with its detail in brackets}.

    Defects with the worst outcome come first, then by name; the names of one defect stay in the
    order in which they were found.
    """
    groups = defaultdict(list)
    for finding in sorted(found, key=lambda finding: (-finding.outcome, finding.defect)):
        detail = f" ({finding.detail})" if finding.detail else ""
        groups[finding.defect].append(finding.name + detail)
    return groups
