"""A T5 of the least size that is told as XXL, for conversions that take a second."""

import torch

LAST = "encoder.block.23.layer.1.DenseReluDense.wi_1"
G = torch.Generator().manual_seed(1)


def t5(**more):
    """A T5 of the least size that ComfyUI takes for XXL, as umt5 is in its own file."""
    tensors = {"shared.weight": (96, 256), "encoder.final_layer_norm.weight": (256,)}
    for block in range(24):
        attention, dense = (f"encoder.block.{block}.layer.{i}" for i in range(2))
        tensors |= {f"{attention}.SelfAttention.{x}.weight": (256, 256) for x in "qkvo"}
        tensors[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (32, 4)
        tensors |= {f"{dense}.DenseReluDense.{x}.weight": (32, 256) for x in ("wi_0", "wi_1")}
        tensors[f"{dense}.DenseReluDense.wo.weight"] = (256, 32)
        tensors |= {f"{part}.layer_norm.weight": (256,) for part in (attention, dense)}
    tensors[f"{LAST}.weight"] = (10240, 256)
    values = {name: torch.randn(shape, generator=G).half() for name, shape in tensors.items()}
    return values | {"spiece_model": torch.arange(9, dtype=torch.uint8)} | more
