"""List the models of docs/models.md, from the data that their tests are made of.

tests/families has names and shapes, whose first lines tell where they come from; tests/golden the
plans that are made of them; tests/support/tiny_*.py the small ones that run in ComfyUI.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FAMILIES, GOLDEN = ROOT / "tests" / "families", ROOT / "tests" / "golden"
SUPPORT = ROOT / "tests" / "support"
# Where a file of tests/families lies, and how the name of its golden plan begins.
FOLDERS = {"": "auto", "encoders": "encoder", "others": "auto"}
SIZE = re.compile(r"^size +(\S+ .?B), exactly .* of the source's (\S+ .?B)", re.MULTILINE)
RECOGNISED = re.compile(r"^recognised as (.+): --preset (\S+)$", re.MULTILINE)
# Models that ComfyUI knows of and no row here is for, with the reason.
NOT_COVERED = {
    "MiniMax Music 3's text encoder": "an audio language model, which ComfyUI (0.33) multiplies as "
    "it does diffusion models, not as text encoders: its quantised layers would run with "
    "activations in 4 or 8 bits, whose error in the tokens that it samples nobody measured",
    "Hunyuan DiT's BERT": "ComfyUI builds it and the mT5 XL beside it in 16 bits alone, and "
    "recognises the BERT in no file of its own",
    "Prism": "no version of ComfyUI that could be read detects it; its class alone is known",
}
# The same of classes in ComfyUI's list of models (comfy/supported_models.py), with their reason.
CLASSES_NOT_COVERED = {
    ("Lotus D", "LotusD"): "a UNet built like Stable Diffusion 2; not planned or run",
    ("Stable Zero123, SV3D u, SD 2.1 unCLIP L", "Stable_Zero123, SV3D_u, SD21UnclipL"): "UNets "
    "built like others that are listed; not planned or run",
    ("KOALA", "KOALA_700M, KOALA_1B"): "UNets built like SDXL with fewer levels; not planned or "
    "run",
    ("Stable Cascade", "Stable_Cascade_C, Stable_Cascade_B"): "kinds of blocks take turns in it, "
    "in which `smart` finds none; `--preset all` takes it",
    ("Hunyuan Image 2.1's refiner", "HunyuanImage21Refiner"): "no sizes of it were found",
    ("Wan by self-forcing, FlowRVS", "WAN21_CausalAR_T2V, WAN21_FlowRVS"): "the names and shapes "
    "of Wan: converted as Wan",
    ("RT-DETR, SAM 3, Depth Anything 3", "RT_DETR_v4, SAM3, SAM31, DepthAnything3"): "they find "
    "things in images, and make none",
}


class Listed(NamedTuple):
    """Hold the cells of a model's row; `plan` is its sizes, or why there is none."""

    title: str
    recognised: str
    preset: str
    plan: str
    runs: str
    since: str
    source: str


def run_small() -> set[str]:
    """Name the files of tests/families of which a small model runs in ComfyUI's tests."""
    found = set()
    for path in SUPPORT.glob("tiny_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "Tiny",
                "TinyEncoder",
            ):
                given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "model")]
                found |= {one.value for one in given if isinstance(one, ast.Constant)}
    return found


def first_line(path: Path) -> dict[str, str]:
    """Read {field: value} of the first line of a file in tests/families."""
    with path.open(encoding="utf-8") as lines:
        _, *fields = next(lines).strip().split("; ")
    return dict(field.split(": ", 1) for field in fields)


def classes_of_models() -> set[str]:
    """Name the classes of ComfyUI that files of tests/families are detected as."""
    paths = [path for folder in FOLDERS for path in (FAMILIES / folder).glob("*.txt")]
    return {first_line(path).get("detected as", "") for path in paths}


def listed_models(folder: str) -> list[Listed]:
    """List the models of a folder of tests/families, by preset and title."""
    small, found = run_small(), []
    for path in (FAMILIES / folder).glob("*.txt"):
        facts, golden = first_line(path), GOLDEN / f"{FOLDERS[folder]}_{path.stem}.txt"
        text = golden.read_text(encoding="utf-8") if golden.is_file() else ""
        size, known = SIZE.search(text), RECOGNISED.search(text)
        nothing = "16 bits alone: ComfyUI loads nothing else" if folder == "encoders" else "`smart`"
        found.append(
            Listed(
                title=facts["title"],
                recognised=known[1] if known else "-",
                preset=f"`{known[2]}`" if known else "-",
                plan=f"{size[2]} -> {size[1]}" if size else nothing,
                runs="yes" if path.stem in small else "-",
                since=facts.get("ComfyUI", "-"),
                source=facts.get("source", "-"),
            )
        )
    return sorted(found, key=lambda one: (one.preset == "-", one.preset, one.title.lower()))


def model_list() -> str:
    """Render a table of diffusion models, one of text encoders, and what is not covered."""
    heads = {
        "": "**Diffusion models**",
        "encoders": "**Text encoders**",
        "others": "**Diffusion models without a preset of their own**",
    }
    lines = []
    for folder, head in heads.items():
        if not (rows := listed_models(folder)):
            continue
        lines += [head, ""]
        lines += ["| model | recognised as | `--preset` | plan | runs small | ComfyUI | shapes |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += [""]
    lines += ["**Not covered**", ""]
    reasons = {title: why for (title, _), why in CLASSES_NOT_COVERED.items()} | NOT_COVERED
    lines += [f"- {title}: {why}." for title, why in reasons.items()]
    return "\n".join(lines) + "\n"
