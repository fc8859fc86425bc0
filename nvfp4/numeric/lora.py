"""Compute what a LoRA, LoHa, LoKr or DoRA adds to a weight.

The arithmetic is that of ComfyUI's patches (comfy/weight_adapter and comfy/lora.py), in float32.
Which tensors of a file belong to which weight is found out in `source.loras`; `read.tensors` calls
`merge` for each patch when it reads a weight.
"""

from __future__ import annotations

import torch

from nvfp4.model import Patch


def lora_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Multiply the factors of a LoRA, up x down.

    parts: `up` [N, r, ...] and `down` [r, K, ...], float32; a convolution may keep its kernel in a
    third factor `mid` (LoCon's CP decomposition). Returns the change as [N, K * kernel], and the
    rank r that `alpha` is divided by.
    """
    up, down = parts["up"], parts["down"]
    rank = down.shape[0]
    if "mid" in parts:
        down = torch.einsum("mn...,nj->mj...", parts["mid"], down.flatten(1))
    return up.flatten(1) @ down.flatten(1), rank


def product(parts: dict[str, torch.Tensor], which: int) -> tuple[torch.Tensor, int | None]:
    """Make one of the two matrices that LoHa and LoKr combine.

    parts: either `w1` (`w2`) whole, or its factors `w1_a` [m, r] and `w1_b` [r, n], with a core
    tensor `t1` for convolutions. which: 1 or 2. Returns the matrix, and its rank, None if it is
    stored whole.
    """
    if (whole := parts.get(f"w{which}")) is not None:
        return whole, None
    a, b, core = parts[f"w{which}_a"], parts[f"w{which}_b"], parts.get(f"t{which}")
    whole = a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)
    # torch.kron refuses the strides that einsum leaves.
    return whole.contiguous(), b.shape[0]


def loha_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Multiply the two low-rank products of a LoHa element by element.

    parts: float32 factors as `product` takes them, both products of the weight's shape. Returns the
    change and the rank of the first product, which `alpha` is divided by.
    """
    (first, rank), (second, _) = product(parts, 1), product(parts, 2)
    return first * second, rank


def lokr_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int | None]:
    """Form the Kronecker product of the two matrices of a LoKr.

    parts: float32 factors as `product` takes them; the second holds a convolution's kernel, if
    there is one. Returns the change and the second one's rank, else the first one's; it is None if
    both are stored whole, where ComfyUI leaves `alpha` out.
    """
    (first, first_rank), (second, rank) = product(parts, 1), product(parts, 2)
    # A plain matrix gets kernel dimensions of 1, as the Kronecker product needs equal dimensions.
    first = first.reshape(first.shape + (1,) * (second.ndim - first.ndim))
    return torch.kron(first, second), rank or first_rank


# A patch's kind, as the names in a LoRA file tell it, and what makes a change and a rank of its
# parts. "diff" and "set" hold a whole tensor, which is added, or takes the weight's place.
CHANGES = {
    "lora": lora_change,
    "loha": loha_change,
    "lokr": lokr_change,
    "diff": lambda parts: (parts["diff"], None),
    "set": lambda parts: (parts["set_weight"], None),
}


def dora(weight: torch.Tensor, merged: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale each row or column of a merged weight to the length that was trained for it.

    weight: before merging; merged: after it, same shape [N, K, ...], float32; scale: `dora_scale`,
    a length for each of N rows, else for each of K columns. As in ComfyUI, the lengths divided by
    are those of the unmerged rows, but of the merged columns.
    """
    # ComfyUI tells rows from columns by this first dimension alone, square weights included.
    if scale.shape[0] == weight.shape[0]:
        length = weight.flatten(1).norm(dim=1)
        length = length.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        length = merged.transpose(0, 1).flatten(1).norm(dim=1)
        length = length.reshape(1, -1, *[1] * (weight.ndim - 2))
    # Float32's epsilon keeps rows of zeros from being divided by 0, as in ComfyUI.
    return merged * (scale.reshape(length.shape) / (length + torch.finfo(torch.float32).eps))


def merge(patch: Patch, parts: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
    """Add one patch to a weight in place: weight[rows] += strength * alpha / rank * change.

    patch: its kind, strength, rows, and whether the halves of the change are swapped; parts: its
    tensors in float32, `alpha` and `dora_scale` included; weight: float32, the whole tensor. A
    patch of kind "set" replaces the rows instead. Raises ValueError, or torch's RuntimeError, where
    the change does not fit the weight.
    """
    weight = weight[patch.rows]
    change, rank = CHANGES[patch.kind](parts)
    if change.shape[:1] != weight.shape[:1] or rank == 0:
        # Reshape alone would accept a transposed change of the same number of elements.
        raise ValueError(change.shape)
    change = change.reshape(weight.shape)
    if patch.swapped:
        change = torch.cat(change.chunk(2)[::-1])
    if patch.kind == "set":
        weight.copy_(change)
        return
    if "alpha" in parts and rank is not None:
        change = change * (parts["alpha"].reshape(()) / rank)
    elif patch.scale != 1:
        change = change * patch.scale
    if "dora_scale" in parts and patch.kind != "diff":
        # The strength applies to the rescaled weight's difference, not to the LoRA's own change.
        change = dora(weight, weight + change, parts["dora_scale"]) - weight
    weight.add_(change, alpha=patch.strength)
