"""What formats share that read stored layers: options of a configuration, other orders of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Misreading(NamedTuple):
    """Hold parts by rows as they would be in another order, and what would decode them."""

    parts: list[torch.Tensor]
    decode: Callable[..., torch.Tensor]


def configured_options(config: dict, **defaults: object) -> list:
    """Read options of a layer's configuration, in the order of the defaults that are given.

    ComfyUI takes entries of the configuration before those of its `params` (comfy/ops.py).
    """
    params = config.get("params")
    both = {**defaults, **(params if isinstance(params, dict) else {}), **config}
    return [both[name] for name in defaults]
