"""What formats share that read stored layers: options of a configuration, other orders of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from nvfp4.numeric.rotation import WRITTEN_GROUP


class Misreading(NamedTuple):
    """Hold parts by rows as they would be in another order, and what would decode them."""

    parts: list[torch.Tensor]
    decode: Callable[..., torch.Tensor]


def rotates(config: dict, columns: int) -> bool:
    """Tell whether comfy_kitchen has the rotation that a configuration asks for.

    Groups are powers of four, and divide the columns.
    """
    (group,) = configured_options(config, convrot_groupsize=WRITTEN_GROUP)
    sizes = [4**power for power in range(1, columns.bit_length() // 2 + 1)]
    return group in sizes and columns % group == 0


def configured_options(config: dict, **defaults: object) -> list:
    """Read options of a layer's configuration, in the order of the defaults that are given.

    ComfyUI takes entries of the configuration before those of its `params` (comfy/ops.py).
    """
    params = config.get("params")
    both = {**defaults, **(params if isinstance(params, dict) else {}), **config}
    return [both[name] for name in defaults]
