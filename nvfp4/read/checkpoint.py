"""Open checkpoints: safetensors headers, indexes and shards.

`open_model` makes a Model of a file, an index or a folder. Headers are parsed here, not by the
safetensors library, as byte offsets are needed to read and write tensors in pieces; what is
accepted is what the library accepts, within limits that hostile files cannot exceed. The weights
themselves are read by `read.tensors`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.dtypes import MAX_DIMENSIONS, bits_of
from nvfp4.errors import EXCERPT, ConvertError, DamagedFileError, Listed, examples, gigabytes
from nvfp4.files import exists, size_of, translated
from nvfp4.model import Model, TensorRef
from nvfp4.read.beginnings import TELLING_BYTES, refuse_foreign
from nvfp4.read.json_files import MAX_HEADER_BYTES, load_json, parse_json, unique_keys
from nvfp4.virtual import VirtualPath

# What hostile files announce must not cost memory or time. Published diffusion models have up to
# 5,000 tensors, names of up to 100 characters, and JSON that is 5 deep. File systems allow names of
# 255 characters.
MAX_TENSORS, MAX_NAME, MAX_SHARDS, MAX_FILE_NAME = 100_000, 10_000, 10_000, 255
# Pickles are named as such, and not opened: they run code. The two bytes after \x80 are protocols
# 2 to 5; what torch.save() writes today is a zip archive.
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
GGUF_MAGIC = b"GGUF"
# What single files of safetensors end in, and how indexes are named: diffusers puts a variant's
# name, as fp16, before the last suffix.
MODEL_SUFFIXES = (".safetensors", ".sft")
INDEX_NAME = re.compile(r".+\.(safetensors|sft)\.index(\.[\w-]+)?\.json", re.IGNORECASE)
# "N of M" as Hugging Face's libraries, gguf-split and people write it, in any count of digits.
NUMBERED = re.compile(
    r"(?:^|(?<=[-_. (\[])|(?<=part)|(?<=shard)|(?<=split))(\d{1,5})[-_ ]?of[-_ ]?(\d{1,5})(?!\d)",
    re.IGNORECASE,
)
# So many models of a repository are named where one has to be chosen, and none whose path says that
# it is another kind of file.
MOST_LISTED = 40
NO_MODEL = re.compile(
    r"(?<![a-z])(lo(ra|con|ha|kr)s?|vae|(text|audio)_encoders?(_\d)?|clip_vision)(?![a-z])",
    re.IGNORECASE,
)
# A pipeline of diffusers is a folder with this file, and with a subfolder for each of its models.
PIPELINE_INDEX = "model_index.json"
DIFFUSION_FOLDER = re.compile(r"(transformer|unet|dit|diffusion_models?)(_\d+)?")


def refuse_other_formats(path: Path, start: bytes, sound: bool) -> None:
    """Raise ConvertError, saying what it is, for a file that is not safetensors but is known.

    `start` is how it begins, and `sound` whether the first 8 bytes may be a header's length. The
    length 640 begins as a pickle does, so such a beginning counts only where `sound` is false.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES or (not sound and start.startswith(PICKLE_MAGIC)):
        raise ConvertError(
            f"{path}: is a pickle file, which can run code when opened; "
            "give a .safetensors version of the model"
        )
    if start.startswith(GGUF_MAGIC):
        raise ConvertError(f"{path}: is a GGUF; give a .safetensors model here")
    if not sound:
        refuse_foreign(path, start)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read in the `with` block.

    Raises ConvertError where it cannot be opened, and for a pipe or a device, where opening would
    wait for a writer. Errors of the block itself pass through unchanged.
    """
    with translated(path, "cannot read"):
        size_of(path)
        file = path.open("rb")
    with file:
        yield file


def read_header(path: Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Open a safetensors file and parse its header, as `parse_header` does.

    Returns {name: TensorRef} in file order and the metadata. Raises ConvertError.
    """
    with opened(path) as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Parse and check the header of an open safetensors file.

    The rules are those of the safetensors library: ranges within the file, each of its shape's
    size, together covering the data exactly. `file` is read from its start; `path` is for messages
    and for the TensorRefs. Returns {name: TensorRef} in file order, and `__metadata__`. Raises
    DamagedFileError for what the library refuses, ConvertError for other formats and too much.
    """
    with translated(path, "cannot read"):
        size = size_of(path)
        # Eight bytes, little endian, are the length of the JSON that follows them.
        start = file.read(8)
        length = int.from_bytes(start, "little")
        sound = len(start) == 8 and 2 <= length <= min(size - 8, MAX_HEADER_BYTES)
        refuse_other_formats(path, start if sound else start + file.read(TELLING_BYTES), sound)
        if not sound:
            cut = length <= MAX_HEADER_BYTES and len(start) == 8
            cut = f", or cut off: its header should have {length:,} bytes" if cut else ""
            problem = f"not a safetensors file{cut}; it has {size:,} bytes"
            problem = problem if size else "is empty; copy or download it again"
            raise DamagedFileError(f"{path}: {problem}")
        raw = file.read(length)
    try:
        header = parse_json(raw.decode(), unique_keys)
        # A list, or spaces before the object: the library refuses both.
        if not raw.startswith(b"{"):
            raise ValueError("it does not begin with {")
    except ValueError as error:
        raise DamagedFileError(f"{path}: the safetensors header is damaged: {error}") from error
    metadata = header.pop("__metadata__", None)
    # The library reads null as no metadata, and some writers put it where they have none.
    metadata = {} if metadata is None else metadata
    if len(header) > MAX_TENSORS:
        raise ConvertError(f"{path}: has {len(header):,} tensors; {MAX_TENSORS:,} are read")
    if not isinstance(metadata, dict) or not all(map(is_text, (*metadata, *metadata.values()))):
        raise DamagedFileError(f"{path}: the safetensors header's __metadata__ must map to strings")
    # Offsets count from the end of the header: 8 bytes of length, then the JSON.
    refs = [parse_entry(path, 8 + length, name, entry) for name, entry in header.items()]
    # An empty tensor begins where the next one does, and comes first.
    refs.sort(key=lambda ref: (ref.begin, ref.nbytes))
    check_coverage(path, refs, 8 + length, size)
    return {ref.name: ref for ref in refs}, metadata


def is_text(value: object) -> bool:
    """Tell whether a JSON value is a string that UTF-8 can hold: no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def parse_entry(path: Path, data_begin: int, name: str, entry: object) -> TensorRef:
    """Check one tensor's entry of a safetensors header, and make a TensorRef of it.

    `data_begin` is where the data section starts in the file, which `data_offsets` count from.
    Types are checked strictly, as bool and float pass for int in Python, and the shape's bits have
    to be those of the range. Raises DamagedFileError, or a plain ConvertError for a name that the
    library takes.
    """
    # A lone surrogate, which JSON allows in a name, is not printable and cannot be written either.
    if len(name) > MAX_NAME or not name.isprintable():
        long = f"{len(name):,} characters" if len(name) > MAX_NAME else "a control character"
        # The library takes any text for a name, but a half of a surrogate pair is none.
        if is_text(name):
            raise ConvertError(f"{path}: tensor {name[:EXCERPT]}: its name has {long}")
        raise DamagedFileError(
            f"{path}: tensor {name[:EXCERPT]}: damaged or unknown entry: its name has {long}"
        )
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        # An empty text or object would pass for a scalar's [] below.
        if not isinstance(entry["shape"], list):
            raise ValueError("its shape is no list")
        numbers = (*shape, begin, end)
        sound = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        if not sound or len(shape) > MAX_DIMENSIONS:
            raise ValueError
        expected = bits_of(dtype, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path}: tensor {name}: damaged or unknown entry {str(entry)[:EXCERPT]}"
        ) from error
    # Compared in bits, as dtypes of 4 and 6 bits may end inside a byte: such a shape is refused.
    if expected != (end - begin) * 8:
        needed = f"{expected // 8:,} bytes" if expected % 8 == 0 else f"{expected:,} bits"
        raise DamagedFileError(
            f"{path}: tensor {name}: {dtype} {list(shape)} needs {needed}, "
            f"the header gives it {end - begin:,} bytes"
        )
    return TensorRef(
        name=name, dtype=dtype, shape=shape, path=path, begin=data_begin + begin, nbytes=end - begin
    )


def check_coverage(path: Path, refs: list[TensorRef], data_begin: int, size: int) -> None:
    """Check that the tensors fill the data section from its begin to the file's end.

    `refs` are in the order of their offsets; `size` is the file's. Each has to begin where the one
    before ends. Raises DamagedFileError, which tells a file that is cut off from other damage.
    """
    position = data_begin
    for ref in refs:
        if ref.begin != position:
            what = "overlaps another" if ref.begin < position else "leaves a gap before it"
            raise DamagedFileError(f"{path}: tensor {ref.name} {what} at byte {ref.begin:,}")
        position += ref.nbytes
    if position != size:
        raise DamagedFileError(
            f"{path}: the tensors end at byte {position:,}, the file at {size:,}: "
            + ("it is cut off; download it again" if size < position else "trailing bytes")
        )


def open_model(source: Path) -> Model:
    """Read the headers of a single file, of an index, or of a folder that holds one of them.

    Raises ConvertError with all problems of all shards at once, and as `model_in` does.
    """
    if source.is_dir():
        source = model_in(source)
    if source.name == PIPELINE_INDEX:
        raise ConvertError(
            f"{source}: names the parts of a pipeline{where_models_are(source.parent)}"
        )
    if source.suffix.lower() == ".json":
        return open_shards(source)
    tensors, metadata = read_header(source)
    return Model(tensors=tensors, metadata=metadata, files=(source,))


def models_in(folder: Path) -> list[Path]:
    """List the indexes in a folder, or else its single files, by name.

    The companions that macOS lays beside files on foreign disks are passed over. Raises OSError.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("._"))
    indexes = [path for path in paths if INDEX_NAME.fullmatch(path.name)]
    return indexes or [path for path in paths if path.suffix.lower() in MODEL_SUFFIXES]


def is_part_of_model(path: Path) -> bool:
    """Tell by its name whether a JSON file is a model's own: an index, or one of diffusers."""
    return bool(INDEX_NAME.fullmatch(path.name)) or path.name in (PIPELINE_INDEX, "config.json")


def numbered(path: Path) -> re.Match | None:
    """Match the "N of M" in a file's name, its groups N and M; None for the only one of one."""
    found = [found for found in NUMBERED.finditer(path.name) if int(found[2]) > 1]
    return found[-1] if found else None


def model_in(folder: Path) -> Path:
    """Find the one model in a folder: an index goes before single files, which are its shards.

    Raises ConvertError where there is not exactly one, and names subfolders that have one.
    """
    with translated(folder, "cannot read"):
        found = models_in(folder)
        if len(found) != 1 and isinstance(folder, VirtualPath):
            refuse_choice(folder)
    if len(found) != 1:
        if any(map(numbered, found)):
            raise ConvertError(
                f"{folder}: holds shards ({examples(path.name for path in found)}) and no index; "
                "download the *.safetensors.index.json that lists them"
            )
        what = "*.safetensors.index.json or *.safetensors files"
        where = f"; it has {examples(path.name for path in found)}; give one by name"
        where = where if found else where_models_are(folder)
        raise ConvertError(f"{folder}: holds {len(found) or 'no'} {what}{where}")
    return found[0]


def refuse_choice(folder: VirtualPath) -> None:
    """Raise ConvertError with a line for each model in a folder or below it, if there are any."""
    folders, found = [folder], []
    for one in folders:
        folders += [path for path in one.iterdir() if path.is_dir()]
        found += models_in(one)
    if found:
        own = len(str(folder))
        found = [path for path in found if not NO_MODEL.search(str(path)[own:])] or found
        told = [f"{path} ({size_told(path)})" for path in found[:MOST_LISTED]]
        told += [f"... and {len(found) - MOST_LISTED:,} more"] * (len(found) > MOST_LISTED)
        what = f"{folder}: holds several files; give the one to convert:"
        raise ConvertError(what, *map(Listed, told))


def size_told(path: Path) -> str:
    """Tell how large a single file is, or the shards that an index lists by its own name."""
    if not INDEX_NAME.fullmatch(path.name):
        return gigabytes(path.stat().st_size)
    stem = re.split(r"\.(?:safetensors|sft)", path.name, flags=re.IGNORECASE)[0]
    beside = (one for one in path.parent.iterdir() if one.suffix.lower() in MODEL_SUFFIXES)
    shards = [one.stat().st_size for one in beside if one.name.startswith(stem)]
    return f"{gigabytes(sum(shards))} in {len(shards):,} shards"


def where_models_are(folder: Path) -> str:
    """Tell which subfolders hold a model, the diffusion model's alone in a pipeline of diffusers.

    Returns the end of a message, which asks for a file by name where there are none.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(OSError):
                found += [path.name] if path.is_dir() and models_in(path) else []
    found = [name for name in found if DIFFUSION_FOLDER.fullmatch(name)] or found
    return f"; give its subfolder {examples(found)}" if found else "; give one by name"


def read_index(index: Path) -> dict[str, set[str]]:
    """Read an index's weight_map: {shard: the names of the tensors listed in it}.

    Shards are sorted by name. Raises ConvertError where the map is malformed or too large, or a
    shard's name leads out of the index's folder: a downloaded index must not make this program read
    other files of the machine.
    """
    weight_map = load_json(index, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise ConvertError(f"{index}: has no weight_map of tensor names to file names")
    # Sorted, so that the order of tensors does not depend on how the index was written.
    shards = {shard: set() for shard in sorted(set(weight_map.values()))}
    if len(shards) > MAX_SHARDS or len(weight_map) > MAX_TENSORS:
        sizes = f"{len(weight_map):,} tensors in {len(shards):,} shards"
        raise ConvertError(f"{index}: has {sizes}; {MAX_TENSORS:,} in {MAX_SHARDS:,} are read")
    for shard in shards:
        if reason := leads_outside(index, shard):
            raise ConvertError(f"{index}: shard {shard[:EXCERPT]!r} {reason}")
    for name, shard in weight_map.items():
        shards[shard].add(name)
    return shards


def open_shards(index: Path) -> Model:
    """Read every shard's header, and check it both ways against the index's weight_map.

    A tensor that is listed has to be in its shard, and one that is in a shard has to be listed.
    Raises ConvertError with the problems of all shards, so that all missing files are told at once.
    """
    shards = read_index(index)
    # A problem of one shard is collected, and the next one is read.
    headers, problems = {}, []
    for shard in shards:
        path = index.parent / shard
        try:
            if not exists(path):
                raise ConvertError(f"{path}: is missing, but {index.name} lists it; download it")
            headers[shard] = read_header(path)
        except ConvertError as error:
            problems += error.problems
    for shard, (tensors, _) in headers.items():
        if missing := shards[shard] - tensors.keys():
            problems.append(f"{index.parent / shard}: the index lists {examples(missing)} in it")
        if unlisted := tensors.keys() - shards[shard]:
            problems.append(f"{index}: has no entry for {examples(unlisted)} of {shard}")
    if problems:
        raise ConvertError(*problems)
    merged = {name: ref for tensors, _ in headers.values() for name, ref in tensors.items()}
    files = (index, *(index.parent / shard for shard in shards))
    metadata = merge_metadata([metadata for _, metadata in headers.values()])
    return Model(tensors=merged, metadata=metadata, files=files)


def leads_outside(index: Path, shard: str) -> str:
    """Say why a shard's name, or the link of that name, leads to a file elsewhere; or "".

    Hugging Face's cache has links for an index and its shards, all into one folder of blobs: the
    folder that the index's own link leads to is allowed, too.
    """
    # Separators of both systems, drive letters, NUL, surrogates, and the names "", "." and "..".
    if re.search(r"[/\\:\x00\ud800-\udfff]|^\.*$", shard):
        return "is not a file name in its own folder"
    if len(shard) > MAX_FILE_NAME:
        return f"has a name of {len(shard):,} characters"
    path = index.parent / shard
    try:
        if path.is_symlink():
            path = path.resolve(strict=True)
            if path.parent not in (index.parent.resolve(), index.resolve().parent):
                return f"is a link to {path}, which is not in its own folder; copy it there"
    except (OSError, RuntimeError):
        # The link leads nowhere or in a circle, or is too long: opening the shard will say so.
        pass
    return ""


def merge_metadata(shards: list[dict[str, str]]) -> dict[str, str]:
    """Merge the metadata of shards, given in order.

    Where shards have different values for one key, the first one's is kept. The quantised layers in
    `_quantization_metadata` are collected from all, as each shard lists only its own.
    """
    merged, layers = {}, {}
    for metadata in shards:
        # The right side of | wins: what is merged already stays.
        merged = metadata | merged
        layers |= header_layers(metadata) or {}
    if layers:
        merged["_quantization_metadata"] = json.dumps({"layers": layers})
    return merged


def header_layers(metadata: dict[str, str]) -> dict | None:
    """Read the layers that a header's metadata configures: {layer: configuration}.

    They are JSON in `_quantization_metadata`, where ComfyUI looks for them. Returns {} if the
    header has none, and None if they cannot be read; configurations themselves are not checked.
    """
    text = metadata.get("_quantization_metadata", '{"layers": {}}')
    try:
        layers = parse_json(text)["layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return layers if isinstance(layers, dict) else None


def file_bytes(model: Model) -> int:
    """Add up the sizes of a model's safetensors files, headers included and the index left out."""
    return sum(path.stat().st_size for path in model.files if path.suffix.lower() != ".json")
