"""Find out whether float16 holds what is to be float16.

Beyond 65504 a value would turn to infinity, so its tensor stays float32, which changes the size of
the file. `cast` tells, and it alone. Where that has to be known before anything is written, by
--dry-run and --target-size, `float16_overflows` casts all that is to be float16, and drops it. Any
other conversion finds out while it writes, and only then asks for all and starts again: such
tensors are rare, and asking first took 2 to 5 % longer where 5 % of a float32 source became
float16, and 19 to 40 % where 43 % did (a Wan of 10 blocks, 6.9 GB, two cores, from the disk and
from the page cache).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nvfp4.encode.pieces import Piece, pieces_of, read_ahead
from nvfp4.errors import Float16OverflowError, printable
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.options import Options
from nvfp4.plan.records import TensorPlan
from nvfp4.progress import progress_bar

# The least number that rounds to infinity: halfway between float16's largest, 65504, and 65536.
HALF_OVERFLOWS = 65520.0


def cast(piece: Piece, data: torch.Tensor) -> torch.Tensor:
    """Cast a piece of a tensor that is not quantised to its output dtype.

    data: what `read_ahead` gave for the piece: bytes where nothing has to be cast, which are
    returned as they are, else floats. Raises Float16OverflowError, with the tensor's name, where
    casting makes infinities of finite values; infinities of the source pass.
    """
    plan = piece.plan
    if plan.dtype == plan.ref.dtype and not plan.ref.is_changed:
        return data
    result = data.to(TORCH_DTYPES[plan.dtype])
    # One quick pass rules nearly all out; it gives NaN where it cannot tell, which is no less.
    suspect = plan.dtype == "F16" and not largest_magnitude(data) < HALF_OVERFLOWS
    if suspect and (result.isinf() & data.isfinite()).any():
        raise Float16OverflowError(plan.ref.name)
    return result


def float16_overflows(plans: Iterable[TensorPlan], options: Options) -> frozenset[str]:
    """Name the tensors that are to be float16 and do not fit.

    plans: all tensors; those that cannot overflow are not read. Reads the others once, piece by
    piece, and writes nothing. The names are those of the source; layers' biases are found among the
    plans like any tensor.
    """
    pieces = [piece for plan in plans if plan.may_overflow for piece in pieces_of(plan)]
    found = set()
    if not pieces:
        return frozenset()
    nbytes = sum(piece.nbytes for piece in pieces)
    with progress_bar("checking float16", nbytes, quiet=options.quiet) as bar:
        for piece, data in read_ahead(pieces, options.buffers):
            try:
                cast(piece, data)
            except Float16OverflowError:
                found.add(piece.plan.ref.name)
            bar.update(piece.nbytes, printable(piece.plan.ref.name))
    return frozenset(found)
