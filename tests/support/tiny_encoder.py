"""A text encoder of Wan's kind, 6 MB of random weights, for a ComfyUI with the helper nodes."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from support.paths import TESTS

# The text width of every Wan, which the model's text_embedding expects.
WIDTH = 4096
# ComfyUI looks for this tensor, and for its first dimension, to know a T5 of the size XXL.
RECOGNISED = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
SENTENCES = [
    "a red square moves to the left over a blue sky",
    "two green discs and a dark triangle",
]


def write_tiny_encoder(path: Path) -> None:
    """Write the checkpoint, which carries its tokenizer as Wan's does (`spiece_model`)."""
    sizes = json.loads((TESTS / "comfyui" / "helper_nodes" / "sizes.json").read_text("utf-8"))
    generator, inner = torch.Generator().manual_seed(3), sizes["d_kv"] * sizes["num_heads"]

    def random(*shape):
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()

    attention, dense = "encoder.block.0.layer.0.", "encoder.block.0.layer.1."
    tensors = {
        "shared.weight": random(sizes["vocab_size"], WIDTH) * WIDTH**0.5,
        **{f"{attention}SelfAttention.{x}.weight": random(inner, WIDTH) for x in "qkv"},
        f"{attention}SelfAttention.o.weight": random(WIDTH, inner),
        f"{attention}SelfAttention.relative_attention_bias.weight": random(32, sizes["num_heads"]),
        f"{attention}layer_norm.weight": torch.ones(WIDTH).bfloat16(),
        f"{dense}DenseReluDense.wi_0.weight": random(sizes["d_ff"], WIDTH),
        f"{dense}DenseReluDense.wi_1.weight": random(sizes["d_ff"], WIDTH),
        f"{dense}DenseReluDense.wo.weight": random(WIDTH, sizes["d_ff"]),
        f"{dense}layer_norm.weight": torch.ones(WIDTH).bfloat16(),
        "encoder.final_layer_norm.weight": torch.full((WIDTH,), 0.15).bfloat16(),
        RECOGNISED: torch.zeros(10240, 1).bfloat16(),
        "spiece_model": tokenizer(sizes["vocab_size"]),
    }
    save_file(tensors, path)


def tokenizer(words: int, bos: int = -1) -> torch.Tensor:
    """Train a sentencepiece model of so many pieces; return its bytes as uint8.

    bos: the token that sentences begin with, -1 for none.
    """
    import sentencepiece  # ComfyUI's requirement, not the converter's

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 8),
        model_writer=written,
        vocab_size=words,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=bos,
        minloglevel=2,
    )
    return torch.from_numpy(np.frombuffer(written.getvalue(), np.uint8).copy())
