"""Read which GGML type a GGUF gives each tensor, and match that to the model.

Only the header is read: the types say which layers llama.cpp's authors gave more bits, and the
converter gives those more, too. A GGUF is untrusted input of a reader that believes it, so that
`GGUFWalk` checks the header before the gguf package reads it, and leaves out the tokenizer, whose
lists are as long as a vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nvfp4.coverage import Cover, check_blocks, check_cover, linear_bytes
from nvfp4.dtypes import MAX_DIMENSIONS
from nvfp4.errors import ConvertError, examples, in_number, of_another_model
from nvfp4.files import exists, make_sparse, size_of, translated
from nvfp4.guides.gguf_names import GgufNames, language_names
from nvfp4.guides.records import GGUF_BITS
from nvfp4.model import Model, TensorRef, bare
from nvfp4.notes import Note, Rank
from nvfp4.prefixes import comparable_names, file_kind
from nvfp4.read.beginnings import TELLING_BYTES, refuse_foreign
from nvfp4.read.checkpoint import GGUF_MAGIC, MAX_NAME, numbered
from nvfp4.read.parts import sibling
from nvfp4.virtual import VirtualPath

# Tensors, entries and values in lists, together. The reader takes about 1 kB of memory for each, so
# that a small file could announce more than a machine has.
MAX_GGUF_PARTS = 50_000
# A language model's tokenizer is left out, whose lists have up to a million values: 45 s and 1.6 GB
# in the reader (Gemma 3). The walk steps over each string, so that there must be an end to them.
TOKENIZER, MAX_TOKENS = b"tokenizer.", 4_000_000
# Bytes of a header before its first entry: magic, version, numbers of tensors and of entries.
GGUF_BEGINNING = 24
# Bytes of a value by the number of its type in GGUF; strings and lists have lengths of their own.
GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_UINT32, GGUF_STRING, GGUF_LIST = 4, 8, 9


class Part(NamedTuple):
    """Hold one file of a GGUF: its header as a Model, and what it says of being split.

    Each number is None where the header does not tell it: number counts from 0, tensors are those
    of all parts together.
    """

    model: Model
    number: int | None
    count: int | None
    tensors: int | None


def open_gguf(path: Path) -> Model:
    """Read a GGUF's header as a Model, with GGML types as dtypes and shapes in torch's order.

    Of a GGUF that is split over several files, any part may be given: the others are looked for
    beside it, and the Model has the tensors of all. No tensor data are read. Raises ConvertError
    for a file that cannot be read, is cut off or damaged, or has a GGML type that GGUF_BITS does
    not know, and for a part whose others are missing or do not go with it.
    """
    part = read_part(path)
    found = numbered(path)
    named, count = int(found[2]) if found else 1, part.count or 1
    if max(named, count) == 1:
        return part.model
    if found is None:
        raise ConvertError(
            f"{path}: is part {part.number or 0:,} of {count:,} of a GGUF, counted from 0, and its "
            f"name does not tell the others; name each NAME-0000N-of-{count:05}.gguf, N from 1"
        )
    if part.count is not None and named != count:
        raise ConvertError(f"{path}: is one of {count:,} parts of a GGUF, and not of {named:,}")
    # Programs that split GGUFs count from 1 in names; the header, where it counts, goes before.
    first = int(found[1]) - part.number if part.number is not None else min(1, int(found[1]))
    paths = [sibling(path, first + index) for index in range(named)]
    if missing := [other.name for other in paths if not exists(other)]:
        raise ConvertError(
            f"{path}: is one of {named:,} parts of a GGUF; {examples(missing)} is missing beside it"
        )
    return joined(paths, [part if other == path else read_part(other) for other in paths])


def joined(paths: list[Path], parts: list[Part]) -> Model:
    """Join the parts of a split GGUF, given in order, into one Model.

    Raises ConvertError for a part of another GGUF, which is told by its numbers, by a tensor that
    an earlier part has, or by how many tensors there should be.
    """
    tensors = {}
    for index, (path, part) in enumerate(zip(paths, parts, strict=True)):
        known = (part.number, part.count) in ((None, None), (index, len(parts)))
        if not known or part.tensors != parts[0].tensors:
            raise ConvertError(f"{path}: is no part of the same GGUF as {paths[0].name}")
        if twice := tensors.keys() & part.model.tensors.keys():
            raise ConvertError(f"{path}: {examples(twice)}: is in an earlier part of the GGUF, too")
        tensors |= part.model.tensors
    if parts[0].tensors not in (None, len(tensors)):
        what = f"{len(parts):,} parts have {len(tensors):,} tensors"
        raise ConvertError(f"{paths[0]}: its {what}, and not {parts[0].tensors:,}")
    return Model(tensors=tensors, metadata=parts[0].model.metadata, files=tuple(paths))


def read_part(path: Path) -> Part:
    """Read the header of one file of a GGUF, as `open_gguf` does for all files of it."""
    if path.is_dir():
        raise ConvertError(f"{path}: is a folder; give the .gguf file in it")
    import gguf  # takes a third of a second, which conversions without a GGUF need not wait for

    try:
        with translated(path, "cannot read"):
            size = size_of(path)  # refuses a pipe, which opening would wait for
            with path.open("rb") as file:
                # Checked before the reader sees it, and from the same open file: none can take its
                # place.
                walk = GGUFWalk(path, file, size)
                with room_for_header(path, walk) as copy:
                    if copy:
                        walk.copy_header(copy)
                    # numpy's memmap, to which it goes, takes either.
                    reader = gguf.GGUFReader(copy or file)
        refs = {tensor.name: gguf_tensor(path, tensor, reader) for tensor in reader.tensors}
        metadata = {
            name: bytes(entry.parts[entry.data[0]]).decode("utf-8", "replace")
            for name, entry in reader.fields.items()
            if entry.types == [gguf.GGUFValueType.STRING]
        }
        keys = map(reader.get_field, ("split.no", "split.count", "split.tensors.count"))
        split = [key and int(key.parts[key.data[0]][0]) for key in keys]
    except ConvertError:
        raise
    except Exception as error:  # a damaged file makes gguf's reader raise anything
        raise ConvertError(
            f"{path}: the GGUF is cut off, damaged or of an unknown kind: {error}"
        ) from error
    unknown = sorted({ref.dtype for ref in refs.values()} - GGUF_BITS.keys())
    if unknown:
        raise ConvertError(f"{path}: unknown GGML types {', '.join(unknown)}; update this tool")
    return Part(Model(tensors=refs, metadata=metadata, files=(path,)), *split)


def room_for_header(
    path: Path, walk: GGUFWalk
) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """Open a temporary file to copy a header to, where the reader cannot have the file as it is.

    That is a virtual file, and one with entries that are left out.
    """
    needs_copy = isinstance(path, VirtualPath) or walk.left_out
    return tempfile.TemporaryFile() if needs_copy else contextlib.nullcontext()


class GGUFWalk:
    """Walk over a GGUF's header and check what the gguf package takes on trust.

    That reader believes every count: past the end of a file it goes on with nothing, for ever. Its
    older versions take the first of two equal keys, and any alignment. The walk keeps little in
    memory and raises ConvertError for what is no GGUF, ValueError for what is damaged. It is done
    once the object is made; `left_out` then has where the tokenizer's entries begin and end.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.file, self.size, self.parts = file, size, 0
        self.left_out: list[tuple[int, int]] = []
        self.tokens = 0
        start = file.read(TELLING_BYTES)
        file.seek(len(GGUF_MAGIC))
        if not start.startswith(GGUF_MAGIC):
            refuse_foreign(path, start)
            raise ConvertError(f"{path}: is not a GGUF file")
        # The version is a small number: in a big-endian file its first two bytes are zero.
        self.order = "big" if file.read(4)[:2] == bytes(2) else "little"
        tensors, self.entries = self.number(8), self.number(8)
        self.announce(tensors + self.entries)
        seen = set()
        for _ in range(self.entries):
            key = self.entry()
            # Digests instead of keys, as each of up to 50,000 keys may be long.
            digest = hashlib.blake2b(key, digest_size=16).digest()
            if digest in seen:
                raise ValueError(f"it has the key {key.decode()!r} more than once")
            seen.add(digest)
        for _ in range(tensors):
            self.skip_tensor()

    def copy_header(self, copy: BinaryIO) -> None:
        """Write the header into another file that gets the size of the whole, its data a hole.

        Of a file that no memory map can be made of, and of one with a tokenizer, the reader sees
        that instead. Offsets of data are no longer those of the file, and nothing reads data.
        """
        begins = [GGUF_BEGINNING, *(end for _, end in self.left_out)]
        ends = [*(begin for begin, _ in self.left_out), self.file.tell()]
        self.file.seek(0)
        make_sparse(copy)
        copy.write(self.file.read(GGUF_BEGINNING - 8))
        copy.write((self.entries - len(self.left_out)).to_bytes(8, self.order))
        for begin, end in zip(begins, ends, strict=True):
            self.file.seek(begin)
            copy.write(self.file.read(end - begin))
        copy.truncate(self.size)
        copy.flush()

    def announce(self, count: int) -> None:
        """Count parts that the reader will build objects for.

        Raises ValueError if they come to more than MAX_GGUF_PARTS.
        """
        self.parts += count
        if self.parts > MAX_GGUF_PARTS:
            what = f"it has {self.parts:,} tensors, entries and values in lists, or more"
            raise ValueError(f"{what}; {MAX_GGUF_PARTS:,} are read")

    def announce_tokens(self, count: int) -> None:
        """Count values of the tokenizer's lists; raises ValueError beyond MAX_TOKENS."""
        self.tokens += count
        if self.tokens > MAX_TOKENS:
            raise ValueError(f"its tokenizer has {self.tokens:,} values or more")

    def number(self, width: int) -> int:
        """Read an unsigned integer of `width` bytes; raises ValueError at the end of the file."""
        if len(raw := self.file.read(width)) < width:
            raise ValueError("it ends inside its header")
        return int.from_bytes(raw, self.order)

    def skip(self, length: int) -> None:
        """Skip `length` bytes; raises ValueError where the file has fewer."""
        here = self.file.tell()
        if length > self.size - here:
            raise ValueError(f"it announces {length:,} bytes at byte {here:,}, beyond its end")
        self.file.seek(length, os.SEEK_CUR)

    def name(self) -> bytes:
        """Read a name, which follows its length; raises ValueError beyond MAX_NAME bytes."""
        if (length := self.number(8)) > MAX_NAME:
            raise ValueError(f"it has a name of {length:,} bytes")
        return self.file.read(length)

    def entry(self) -> bytes:
        """Walk over one key and its value, and return the key.

        `general.alignment` must be a power of two: the reader computes offsets of data from it. The
        tokenizer's entries are left out.
        """
        begin = self.file.tell()
        key, kind = self.name(), self.number(4)
        if key.startswith(TOKENIZER):
            self.skip_value(kind, self.announce_tokens)
            self.left_out.append((begin, self.file.tell()))
        elif (key, kind) != (b"general.alignment", GGUF_UINT32):
            self.skip_value(kind, self.announce)
        elif (alignment := self.number(4)).bit_count() != 1:
            raise ValueError(f"it has a general.alignment of {alignment}, no power of two")
        return key

    def skip_value(self, kind: int, announce: Callable[[int], None]) -> None:
        """Skip a value of type `kind`; raises ValueError for a list in a list.

        announce: is told how many values a list has, before they are looked at. An unknown type is
        skipped as if it had no bytes, since the reader refuses it by itself.
        """
        if kind == GGUF_STRING:
            self.skip(self.number(8))
        elif kind != GGUF_LIST:
            self.skip(GGUF_WIDTHS.get(kind, 0))  # the reader refuses what is unknown
        else:
            inner, count = self.number(4), self.number(8)
            if inner == GGUF_LIST:
                raise ValueError("it has a list in a list")
            announce(count)
            if inner == GGUF_STRING:
                for _ in range(count):
                    self.skip(self.number(8))
            else:
                self.skip(GGUF_WIDTHS.get(inner, 0) * count)

    def skip_tensor(self) -> None:
        """Skip a tensor's entry; raises ValueError for absurd dimensions, sizes or offsets."""
        self.name()
        if (dimensions := self.number(4)) > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions:,} dimensions")
        elements = math.prod(self.number(8) for _ in range(dimensions))
        _, begin = self.number(4), self.number(8)
        # numpy counts elements in 64 bits, signed.
        if begin > self.size or elements >= 1 << 63:
            raise ValueError(f"it has no {elements:,} elements at byte {begin:,} of its data")


def gguf_tensor(path: Path, tensor: object, reader: object) -> TensorRef:
    """Make a TensorRef of the reader's `tensor`, with the shape that torch gives it.

    GGML lists dimensions in reverse. ComfyUI-GGUF notes the original shape of a tensor that it
    stored in another one under `comfy.gguf.orig_shape.NAME`, which then counts.
    """
    shape = tuple(map(int, reversed(tensor.shape)))
    original = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
    if original is not None:
        shape = tuple(int(original.parts[i][0]) for i in original.data)
    return TensorRef(
        name=tensor.name,
        dtype=tensor.tensor_type.name,
        shape=shape,
        path=path,
        begin=int(tensor.data_offset),
        nbytes=int(tensor.n_bytes),
    )


def shapes_agree(shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Tell whether a source tensor's shape and a GGUF's can be those of one tensor.

    A GGUF drops dimensions of 1 and may store a 5-D convolution in 4 dimensions or fewer.
    """
    if [size for size in shape if size != 1] == [size for size in stored if size != 1]:
        return True
    return len(shape) == 5 and len(stored) <= 4 and math.prod(shape) == math.prod(stored)


def refuse_other_shapes(path: Path, pairs: Iterable[tuple[TensorRef, TensorRef]]) -> None:
    """Raise ConvertError where tensors of the source and the GGUF's of equal names do not agree."""
    wrong = [(own, other) for own, other in pairs if not shapes_agree(own.shape, other.shape)]
    if wrong:
        raise of_another_model(
            path,
            f"{len(wrong)} tensors have other shapes",
            it_has=(f"{other.name} {list(other.shape)}" for _, other in wrong),
            other_has=(f"{own.name} {list(own.shape)}" for own, _ in wrong),
        )


def encoder_names(path: Path, stored: Model, model: Model) -> GgufNames | None:
    """Match a GGUF of a text encoder with the source; None for a GGUF of a diffusion model.

    Raises ConvertError for other kinds of files, and for a text encoder's that fits nothing here.
    """
    architecture = stored.metadata.get("general.architecture", "")
    names = language_names(path, architecture, stored.tensors, model)
    if names.tensors:
        return names
    if kind := file_kind(path, stored.tensors):
        raise ConvertError(f"{path}: is {kind.title}: give the GGUF of the model that is converted")
    return None


def match_gguf(path: Path, model: Model, partial: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return {source tensor: GGML type}, and notes on what only one of the two has.

    Names match exactly or without their prefix, and those of text encoders by llama.cpp's tables.
    Raises ConvertError for a GGUF of another model: none of the linear layers is in it, tensors of
    equal names have other shapes, or, unless `partial`, it covers a part of the model alone.
    """
    model_of_gguf = open_gguf(path)
    stored, beside = model_of_gguf.tensors, model_of_gguf.beside
    # A GGUF's names often lack the prefix that the source's have, or the other way round.
    by_bare = {name: old for old, name in comparable_names(path, stored).items()}
    wanted = linear_bytes(model)
    if names := encoder_names(path, model_of_gguf, model):
        others = stored.keys() - set(names.tensors.values())
        by_bare = names.tensors | {name: name for name in others}
        wanted = {layer: size for layer, size in wanted.items() if layer in names.layers}
    matched = {name: name if name in stored else by_bare.get(bare(name)) for name in model.tensors}
    matched = {name: other for name, other in matched.items() if other is not None}
    if not any(ref.name in matched for ref in model.linear_weights):
        what = "no linear layer of the source is in it"
        raise of_another_model(path, what, it_has=stored, other_has=model.tensors)
    # What is packed in the source has a shape of its own.
    plain = {name: other for name, other in matched.items() if not model.tensors[name].is_kept}
    refuse_other_shapes(
        path, [(model.tensors[name], stored[other]) for name, other in plain.items()]
    )
    # A GGUF may hold text encoders, too, as stable-diffusion.cpp writes them.
    weights = (n for n, old in by_bare.items() if n.endswith(".weight") and old not in beside)
    layers = (name.removesuffix(".weight") for name in weights)
    cover = Cover((path,), frozenset(layers))
    notes = check_blocks(cover, model, partial) + check_cover(cover, wanted, partial)
    known = matched.keys() | model.beside.keys()
    new = (ref for ref in model.tensors.values() if ref.is_float and not ref.is_kept)
    lacking = [ref.name for ref in new if ref.name not in known]
    if lacking:
        what = in_number(len(lacking), "tensors not in the GGUF stay 16-bit")
        notes.append(Note(f"{what}: {examples(lacking)}", Rank.NOTE))
    if extra := stored.keys() - set(matched.values()):
        what = in_number(len(extra), "tensors of the GGUF are not in the source")
        notes.append(Note(f"{what}: {examples(extra)}", Rank.NOTE))
    return {name: stored[other].dtype for name, other in matched.items()}, notes
