"""Say on a node what the converter says to who types a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from types import ModuleType
from typing import NamedTuple

# Inputs that are called otherwise than the options they stand for; of the others, the input's name
# is the flag's with underscores.
INPUTS = {
    "--target-size": "target_size_gb",
    "--activation-stats": "statistics",
    "--merge-lora": "loras",
    "--source": "source",
}
# Advice that is for a command line alone, and what is to be done on a node.
ADVICE = {
    "give the model, and this with --merge-lora": "choose its model, this in Merge LoRA (NVFP4)",
    "was a unit forgotten, as in 8GB?": "8 is 8 GB",
    "with every open layer": "with every layer that has a choice",
}
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
# Sizes as the converter writes them, exact bytes behind the first kind.
TYPED = re.compile(r"target_size_gb (\d[\d.]*)(MB|GB)")
TOLD = re.compile(r"(?<![\d.,])\d[\d.]* (?:bytes|kB|MB|GB)(?: \(([\d,]+) bytes\))?")
BYTES = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
# Documents that a copied pack has not.
DOCUMENT = re.compile(r"\s*\(docs/[^()]*\)")
# What the converter calls a file's folder, which is of no use beside the file that lies in it.
FOLDER = re.compile(r"into models/(\w+);\s+")


def in_gigabytes(size: float) -> str:
    """Write bytes as target_size_gb takes them, rounded up."""
    return f"{math.ceil(size / 1e6) / 1e3:.12g}"


def input_of(flag: str, inputs: Collection[str]) -> str | None:
    """Name the input that stands for an option, None where none does."""
    name = INPUTS.get(flag, flag.removeprefix("--").replace("-", "_"))
    return name if name in inputs or flag in INPUTS else None


def on_node(text: str, inputs: Collection[str]) -> str:
    """Put the names of inputs in place of those options that they stand for."""
    for typed, done in ADVICE.items():
        text = text.replace(typed, done)
    text = FLAG.sub(lambda found: input_of(found[0], inputs) or found[0], text)
    return DOCUMENT.sub("", text)


def error_on_node(program: ModuleType, text: str, inputs: Collection[str]) -> str:
    """Write an error of the converter in the words of a node with these inputs, sizes in GB.

    Options that are no input of their own go into more_options, which the line says.
    """
    text = on_node(text, inputs)
    if "target_size_gb" in text:
        text = TYPED.sub(
            lambda found: f"target_size_gb {in_gigabytes(float(found[1]) * BYTES[found[2]])}", text
        )
        text = TOLD.sub(size_told, text)
    known = {flag for row in program.all_options(program.Options) for flag in row.flags}
    others = [flag for flag in dict.fromkeys(FLAG.findall(text)) if flag in known]
    if others and "more_options" not in text:
        text += f" ({' and '.join(others)}: in more_options)"
    return text


def size_told(found: re.Match) -> str:
    """Write in GB a size that a message tells."""
    number, unit = found[0].split()[:2]
    size = int(found[1].replace(",", "")) if found[1] else float(number) * BYTES[unit]
    return f"{in_gigabytes(size)} GB"


class Words(NamedTuple):
    """Say what came of a file that lies in ComfyUI's folder `kind`, on a node with `inputs`."""

    kind: str
    inputs: Collection[str]

    def in_place(self, text: str) -> str:
        """Leave out the folder that the file goes to, where it is there."""
        return FOLDER.sub(lambda found: "" if found[1] == self.kind else found[0], text)

    def summary(self, text: str) -> str:
        """Make a summary fit for the node."""
        return on_node(self.in_place(text), self.inputs)

    def report(self, data: dict, shown: str) -> dict:
        """Make the data of a conversion's or a check's page fit for the node.

        shown: the file's name in ComfyUI's lists, which stands where the page would say that no
        ComfyUI was asked.
        """
        changed = data | {"comfyui": data["comfyui"] or {"answer": f"In its lists: {shown}"}}
        if data["load"]:
            changed["load"] = data["load"] | {"text": self.in_place(data["load"]["text"])}
        changed["notes"] = [
            note | {"text": on_node(note["text"], self.inputs)} for note in data.get("notes", ())
        ]
        return changed
