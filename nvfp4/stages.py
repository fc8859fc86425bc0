"""A hook for whoever wants to know what a conversion is busy with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Called with a stage's name, it returns a context that lasts while that stage works on one piece:
# "read", "encode", "write", "sync" (to bring what was written to the disk) or "verify". Reading and
# writing have a thread each, so that stages overlap; one stage is never in two contexts at once.
Observe = Callable[[str], AbstractContextManager]
NOTHING = nullcontext()


def unobserved(_: str) -> AbstractContextManager:
    """Let a stage go by: what a conversion does where nobody asks."""
    return NOTHING
