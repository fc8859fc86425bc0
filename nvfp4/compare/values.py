"""Measure decoded weights of one file against another's: --values.

This is the only part of the comparison that reads weights, and it reads both files whole, a layer
at a time. `schemes` decodes them, whatever they are stored as.
"""

from __future__ import annotations

import math

import torch

from nvfp4.compare.describe import matches
from nvfp4.compare.schemes import decode_weight, not_decoded, padded_shape
from nvfp4.compare.sides import Side
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import measure_damage
from nvfp4.progress import each_with_bar
from nvfp4.stored.layers import StoredLayer


def relative_rmse_between(one: StoredLayer, other: StoredLayer) -> float:
    """Measure the relative RMSE of the other's weight against the one's, decoded to float32.

    That is the root of the squared difference over the energy of the one's weight. Only rows and
    columns that both have count, as one may be padded. Both must be decodable: see `not_decoded`.
    NaN where a weight holds NaN, infinity where the one's is all zeros and the other's is not.
    """
    # A padded side without a bias cannot be told from a larger weight.
    rows, columns = map(min, one.shape, other.shape)
    left, right = (decode_weight(layer)[:rows, :columns].contiguous() for layer in (one, other))
    # The squares of huge and of tiny weights would leave float32's range.
    unit = largest_magnitude(left)
    unit = torch.where(unit > 0, unit, torch.ones(()))
    return measure_damage(left / unit, right / unit).relative_rmse


def compare_values(a: Side, b: Side, pattern: str) -> dict:
    """Measure the decoded weight of every layer of B against A's, with progress on stderr.

    pattern: chooses layers by name. Only layers that both sides have are measured.

    Returns a dict with relative_rmse, {layer: error, or None where it is not finite}, and
    not_compared, {layer: why it has no error}: it cannot be decoded here, or the shapes differ by
    more than padding.
    """
    found, left_out = {}, {}
    shared = [name for name in a.linear if name in b.linear and matches(pattern, name)]
    for name in each_with_bar("decoding", shared):
        layers = a.linear[name], b.linear[name]
        reasons_against = [reason for layer in layers if (reason := not_decoded(layer))]
        if padded_shape(layers[0]) != padded_shape(layers[1]):
            reasons_against.append(f"{list(layers[0].shape)} against {list(layers[1].shape)}")
        if reasons_against:
            left_out[name] = reasons_against[0]
        else:
            found[name] = relative_rmse_between(*layers)
    # JSON has neither NaN nor infinity: None stands for both.
    finite_only = {name: error if math.isfinite(error) else None for name, error in found.items()}
    return {"relative_rmse": finite_only, "not_compared": left_out}
