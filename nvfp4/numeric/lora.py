"""What a LoRA, LoHa, LoKr or DoRA adds to a weight."""

from __future__ import annotations

import torch

from nvfp4.model import Patch


# Merging LoRAs, as ComfyUI patches a weight (comfy/weight_adapter, comfy/lora.py), in float32.
def lora_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """up x down, and the rank; a convolution may have its kernel in a third factor."""
    up, down = parts["up"], parts["down"]
    rank = down.shape[0]
    if "mid" in parts:
        down = torch.einsum("mn...,nj->mj...", parts["mid"], down.flatten(1))
    return up.flatten(1) @ down.flatten(1), rank


def product(parts: dict[str, torch.Tensor], which: int) -> tuple[torch.Tensor, int | None]:
    """One of the two matrices of LoHa and LoKr, and its rank; one stored whole has none."""
    if (whole := parts.get(f"w{which}")) is not None:
        return whole, None
    a, b, core = parts[f"w{which}_a"], parts[f"w{which}_b"], parts.get(f"t{which}")
    whole = a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)
    return whole.contiguous(), b.shape[0]  # torch.kron refuses the strides einsum leaves


def loha_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The two products, multiplied element by element."""
    (first, rank), (second, _) = product(parts, 1), product(parts, 2)
    return first * second, rank


def lokr_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int | None]:
    """Their Kronecker product; the second one holds a convolution's kernel, and counts as rank."""
    (first, first_rank), (second, rank) = product(parts, 1), product(parts, 2)
    first = first.reshape(first.shape + (1,) * (second.ndim - first.ndim))
    return torch.kron(first, second), rank or first_rank


CHANGES = {
    "lora": lora_change,
    "loha": loha_change,
    "lokr": lokr_change,
    "diff": lambda parts: (parts["diff"], None),
    "set": lambda parts: (parts["set_weight"], None),
}


def dora(weight: torch.Tensor, merged: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`merged`, each row or column scaled to a length that was trained.

    As in ComfyUI, the length is relative to the unmerged rows', but to the merged columns'.
    """
    if scale.shape[0] == weight.shape[0]:
        length = weight.flatten(1).norm(dim=1)
        length = length.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        length = merged.transpose(0, 1).flatten(1).norm(dim=1)
        length = length.reshape(1, -1, *[1] * (weight.ndim - 2))
    return merged * (scale.reshape(length.shape) / (length + torch.finfo(torch.float32).eps))


def merge(patch: Patch, parts: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
    """`weight[rows] += strength * alpha / rank * change`, in place."""
    weight = weight[patch.rows]
    change, rank = CHANGES[patch.kind](parts)
    if change.shape[:1] != weight.shape[:1] or rank == 0:
        raise ValueError(change.shape)  # reshape alone would take a transposed one
    change = change.reshape(weight.shape)
    if patch.swapped:
        change = torch.cat(change.chunk(2)[::-1])
    if patch.kind == "set":
        weight.copy_(change)
        return
    if "alpha" in parts and rank is not None:
        change = change * (parts["alpha"].reshape(()) / rank)
    if "dora_scale" in parts and patch.kind != "diff":
        change = dora(weight, weight + change, parts["dora_scale"]) - weight
    weight.add_(change, alpha=patch.strength)
