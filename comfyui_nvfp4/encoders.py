"""Watch text encoders while they encode: a CLIP that records what its linear layers are given.

A CLIP may hold several encoders, as Flux's clip_l and t5xxl, each of which comes from a file of its
own. So each has a recording of its own, whose layers are named as in that file.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

from comfy.sd1_clip import SDClipModel

from .inputs import NodeError
from .recorder import Recording, linear_layers


def encoders_of(clip) -> dict[str, object]:
    """Find {what ComfyUI calls it: module} of the encoders in a CLIP.

    A module's parameters are named as the tensors of the encoder's own file. Raises NodeError for a
    CLIP that has none.
    """
    found = {
        name.replace(".", "_") or "encoder": module.transformer
        for name, module in clip.cond_stage_model.named_modules()
        if isinstance(module, SDClipModel)
    }
    if not found:
        raise NodeError("the CLIP holds no text encoder that can be recorded")
    return found


class EncoderRecorder:
    """Record the encoders of a CLIP: recordings are {encoder: its Recording}.

    how: as in `Recording.watching`. Encoders without a layer that `pattern` matches are left alone.
    """

    def __init__(self, recordings: dict[str, Recording], **how: object):
        self.recordings, self.how, self.is_watching = recordings, how, False

    @contextlib.contextmanager
    def watching(self, clip) -> Iterator[None]:
        """Record in the `with` block; one within another does nothing.

        The files are written at its end. Raises NodeError where no layer has a name that matches.
        """
        if self.is_watching:
            yield
            return
        pattern = self.how.get("pattern", "")
        watched = {
            name: encoder
            for name, encoder in encoders_of(clip).items()
            if any(re.search(pattern, layer) for layer in linear_layers(encoder))
        }
        if not watched:
            raise NodeError(f"layers: no linear layer of the encoders matches {pattern!r}")
        self.is_watching = True
        try:
            with contextlib.ExitStack() as stack:
                for name, encoder in watched.items():
                    stack.enter_context(self.recordings[name].watching(encoder, **self.how))
                yield
        finally:
            self.is_watching = False


class Watched:
    """Mix recording into the class of a CLIP; clones, as LoRA loaders make them, record as well."""

    recorders: tuple[EncoderRecorder, ...] = ()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record all that is encoded in the `with` block, and write the files at its end."""
        with contextlib.ExitStack() as stack:
            for recorder in self.recorders:
                stack.enter_context(recorder.watching(self))
            yield

    def clone(self, *arguments, **keywords):
        """Return a clone that records into the same files."""
        return mixed(super().clone(*arguments, **keywords), self.recorders)

    def encode_from_tokens(self, *arguments, **keywords):
        """Encode as before, recorded."""
        with self.recording():
            return super().encode_from_tokens(*arguments, **keywords)

    def encode_from_tokens_scheduled(self, *arguments, **keywords):
        """Encode as before, recorded, whatever hooks do."""
        with self.recording():
            return super().encode_from_tokens_scheduled(*arguments, **keywords)

    def generate(self, *arguments, **keywords):
        """Generate a text as before, recorded."""
        with self.recording():
            return super().generate(*arguments, **keywords)


@functools.cache
def watched_class(kind: type) -> type:
    """Make the class of CLIPs of a kind that record."""
    return (
        kind if issubclass(kind, Watched) else type(f"Watched{kind.__name__}", (Watched, kind), {})
    )


def mixed(clip, recorders: tuple[EncoderRecorder, ...]):
    """Make a CLIP record by `recorders`, in place, and return it."""
    clip.__class__ = watched_class(type(clip))
    clip.recorders = recorders
    return clip


def watched_clip(clip, recordings: dict[str, Recording], **how: object):
    """Return a clone of a CLIP that records into {encoder: Recording} whatever is encoded by it."""
    before = getattr(clip, "recorders", ())
    return mixed(clip.clone(), (*before, EncoderRecorder(recordings, **how)))
