"""Put two files side by side: one structure or not, and what differs.

Layers and tensors are matched by their names without the model's prefix, so that files with and
without it can be compared. `describe` makes each side's own part of the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from nvfp4.compare.contents import kind_of_tensor
from nvfp4.compare.describe import describe, matches
from nvfp4.compare.schemes import scheme_label
from nvfp4.compare.sides import Side
from nvfp4.compare.values import compare_values
from nvfp4.names import kind_of


def structure(side: Side) -> dict[str, tuple]:
    """Collect what has to be equal for two files to be of one structure.

    Returns {name without prefix: (dtype, shape)} of every tensor, and of every linear layer {name:
    (how it is stored and multiplied, shape before packing)}. Metadata and the order of the tensors
    are free. A layer's name has no suffix, so that it cannot be that of its own weight.
    """
    tensors = {side.names[name]: (ref.dtype, ref.shape) for name, ref in side.model.tensors.items()}
    layers = {name: (scheme_label(x, side), x.shape) for name, x in side.linear.items()}
    # Layers are compared beside tensors, as a configuration in the header is no tensor and changes
    # how a layer is multiplied.
    return tensors | layers


def differences(a: Side, b: Side, pattern: str) -> list[dict]:
    """Group the layers of both sides that are stored otherwise, by scheme and by kind.

    pattern: chooses layers by name. A layer differs if its scheme, or its weight's dtype or stored
    shape does; layers that one side lacks are not among them.

    Returns a dict for each pair of schemes, sorted: a and b, their labels; layers, how many; and
    kinds, a list of dicts with a kind of layer, how many of it, and "dtype [shape] -> dtype
    [shape]" as stored.
    """
    groups = defaultdict(lambda: defaultdict(int))
    # Layers of equal scheme may still differ, as padding changes the stored shape.
    for name in sorted(a.linear.keys() & b.linear.keys()):
        layers = a.linear[name], b.linear[name]
        labels = tuple(map(scheme_label, layers, (a, b)))
        stored = tuple((layer.weight.dtype, layer.weight.shape) for layer in layers)
        if (labels[0] != labels[1] or stored[0] != stored[1]) and matches(pattern, name):
            texts = (f"{dtype} {list(shape)}" for dtype, shape in stored)
            groups[labels][kind_of(name), " -> ".join(texts)] += 1
    return [
        {
            "a": one,
            "b": other,
            "layers": sum(kinds.values()),
            "kinds": [
                {"kind": kind, "layers": count, "stored": stored}
                for (kind, stored), count in kinds.items()
            ],
        }
        for (one, other), kinds in sorted(groups.items())
    ]


def other_differences(a: Side, b: Side) -> list[dict]:
    """Group the tensors that both have with other dtypes or shapes, but for linear weights.

    Returns a dict for each kind: kind, tensors (how many), and stored, as in `differences`.
    """
    mine, other = ({side.names[name]: ref for name, ref in side.model.tensors.items()}
                   for side in (a, b))  # fmt: skip
    weights = {f"{name}.weight" for name in a.linear.keys() & b.linear.keys()}
    counts = Counter()
    for name in (mine.keys() & other.keys()) - weights:
        refs = mine[name], other[name]
        if (refs[0].dtype, refs[0].shape) != (refs[1].dtype, refs[1].shape):
            texts = (f"{ref.dtype} {list(ref.shape)}" for ref in refs)
            counts[kind_of_tensor(name), " -> ".join(texts)] += 1
    return [{"kind": kind, "tensors": count, "stored": stored}
            for (kind, stored), count in sorted(counts.items())]  # fmt: skip


def only_in(side: Side, other: Side) -> dict[str, int]:
    """Count the tensors that the other side lacks, by kind: {kind: how many}.

    Names are compared without the model's prefix. The most frequent kind comes first. A quantised
    file has scales here that its 16-bit source has not, however alike the two are.
    """
    known = {*other.names.values()}
    # Tensors are counted by kind, as one missing scale is missing from every block.
    names = (name for name in side.names.values() if name not in known)
    return dict(Counter(map(kind_of_tensor, names)).most_common())


def compare_sides(a: Side, b: Side, pattern: str, values: bool) -> dict:
    """Describe both sides and what is different, as data that JSON can have.

    pattern: chooses the layers that are listed and compared; the structure and what only one side
    has are always of the whole files. values: decode the weights, too, and measure B's against A's,
    which reads both files whole.

    Returns a dict with same_file, same_structure, same_metadata, a and b (see `describe`),
    layers_that_differ, tensors_that_differ, only_in_a and only_in_b, and with values also what
    `compare_values` returns.
    """
    data = {
        "same_file": a.path.samefile(b.path),
        "same_structure": structure(a) == structure(b),
        "same_metadata": a.model.metadata == b.model.metadata,
        "a": describe(a, pattern),
        "b": describe(b, pattern),
        "layers_that_differ": differences(a, b, pattern),
        "tensors_that_differ": other_differences(a, b),
        "only_in_a": only_in(a, b),
        "only_in_b": only_in(b, a),
    }
    return data | (compare_values(a, b, pattern) if values else {})
