"""Read what a file's header records of the conversion that made it."""

from __future__ import annotations

from nvfp4.errors import EXCERPT, one_line
from nvfp4.read.json_files import parse_json

# The options that tell most about a conversion, as its header calls them.
TELLING_OPTIONS = ("gguf", "preset", "recipe")


def origin_text(metadata: dict[str, str]) -> str:
    """Tell which version of this tool made a file, of what and how; "" if no record says so.

    metadata: of its header. The record may be damaged: what is not as this tool writes it is left
    out. The text ends a sentence: "made by convert_nvfp4 0.1.0 of wan.safetensors (--preset wan)".
    """
    try:
        record = parse_json(metadata["convert_nvfp4"])
        version, sources, options = (record[key] for key in ("version", "sources", "options"))
        # Of an index and its shards, the index comes first.
        names = [str(name) for name in [*sources][:1]]
        how = [f"--{name} {options[name]}" for name in TELLING_OPTIONS if name in options]
    except (KeyError, TypeError, ValueError):
        return ""
    of = f" of {names[0]}" if names else ""
    with_options = f" ({', '.join(how)})" if how else ""
    return one_line(f"made by convert_nvfp4 {version}{of}{with_options}"[:EXCERPT])
