"""Write a card to publish a converted file with, for Hugging Face: --model-card.

It is Markdown behind lines of YAML, which the Hub reads. What only a person can know, as the
licence, is left to be filled in, and the card says so. Names come from files and may be hostile:
in YAML all of them are quoted as in JSON, which YAML takes, and in Markdown they stand in code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nvfp4.cards import CARDS, UNITS
from nvfp4.errors import gigabytes, in_number, one_line, percentage
from nvfp4.families import ROWS, recognise
from nvfp4.hub.path import HubPath
from nvfp4.model import Model
from nvfp4.options.as_typed import typed_command
from nvfp4.report.data import Report, summary_data
from nvfp4.report.usual import NAMED
from nvfp4.work import render_work

# The Hub's word for files that ComfyUI's loaders take whole.
SINGLE_FILE = "diffusion-single-file"
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"
# What models do, in the Hub's words: by the family's variant, or by what the family makes. One
# alone is what the model does; of several, a person has to choose.
VARIANT_TASKS = {"T2V": ("text-to-video",), "I2V": ("image-to-video",)}
IMAGE_TASKS = ("text-to-image", "image-to-image")
VIDEO_TASKS = ("text-to-video", "image-to-video")
ANY_TASK = (*IMAGE_TASKS, *VIDEO_TASKS)


def as_code(text: object) -> str:
    """Write a text as code, so that nothing in it is markup, a link or another cell of a table."""
    line = one_line(str(text)) or " "
    # Code ends at as many backticks as it began with.
    fence = "`" * (longest_run(line) + 1)
    space = " " * line.startswith("`") or " " * line.endswith("`")
    return f"{fence}{space}{line}{space}{fence}"


def longest_run(text: str) -> int:
    """Count the backticks of the longest run of them."""
    return max(map(len, re.findall("`+", text)), default=0)


def as_name(text: str) -> str:
    """Write a name as it is where it is of words that Markdown leaves alone, else as code."""
    is_plain = re.fullmatch(r"[A-Za-z0-9]+([ ._-][A-Za-z0-9]+)*", text)
    return text if is_plain else as_code(text)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table of ready cells; all columns but the first are set to the right."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    # A bar ends a cell, in code as well.
    safe = ([cell.replace("|", "\\|") for cell in cells] for cells in (columns, marks, *rows))
    return [*(f"| {' | '.join(cells)} |" for cells in safe), ""]


class CardFacts(NamedTuple):
    """Hold what the sections of a card are made of.

    data: of the report's summary. base: the repository of models that SOURCE is in, "" where it is
    in none. family: a key of FAMILIES, or "". title: what the model is. tasks: what it may do, in
    the Hub's words.
    """

    report: Report
    data: dict
    base: str
    family: str
    title: str
    tasks: tuple[str, ...]

    @property
    def blanks(self) -> list[str]:
        """List what a person has to fill in."""
        task = ["the task"] if len(self.tasks) != 1 else []
        return ["the licence", *([] if self.base else ["the base model"]), *task]


def make_card(report: Report) -> CardFacts:
    """Gather what a card tells of a conversion."""
    refs = {plan.ref.name: plan.ref for plan in report.plans}
    name, variant = recognise(Model(tensors=refs, metadata={}, files=()))
    family = ROWS.get(name)
    title = family.title if family else "Diffusion model"
    # A family of images may edit them, too, and one of videos begin with a picture.
    makes = family.makes if family else ()
    usual = IMAGE_TASKS if "image" in makes else VIDEO_TASKS if "video" in makes else ()
    return CardFacts(
        report=report,
        data=summary_data(report),
        base=base_model(report.options.source),
        family=name,
        title=f"{title} ({variant})" if variant else title,
        tasks=VARIANT_TASKS.get(variant, usual),
    )


def render_card(report: Report) -> str:
    """Render the card of a conversion, or of a dry run, which it says."""
    card = make_card(report)
    sections = (
        front_matter,
        card_introduction,
        card_loading,
        card_contents,
        card_losses,
        card_making,
    )
    return "\n".join(line for section in sections for line in section(card)) + "\n"


def front_matter(card: CardFacts) -> Iterator[str]:
    """Render the lines of YAML.

    What is to be filled in is a comment, so that they are valid; what to write there stands behind
    another one, so that they are valid without the first, too.
    """
    is_single = not card.report.options.output_sharded
    plans = card.report.plans
    words = {plan.format.option for plan in plans if plan.is_quantised or plan.ref.config}
    yield "---"
    yield f"#license: FILL_IN # that of the base model, such as apache-2.0: {LICENCES}"
    if card.base:
        yield f"base_model: {json.dumps(card.base)}"
        yield "base_model_relation: quantized"
    else:
        yield "#base_model: FILL_IN # the original model's repository, as OWNER/NAME"
        yield "#base_model_relation: quantized"
    if is_single:
        yield f"library_name: {SINGLE_FILE}"
    if len(card.tasks) == 1:
        yield f"pipeline_tag: {card.tasks[0]}"
    else:
        yield f"#pipeline_tag: FILL_IN # what it does: {' or '.join(card.tasks or ANY_TASK)}"
    yield "tags:"
    tags = [*["comfyui"] * is_single, "quantized", *(word for word in UNITS if word in words)]
    yield from (f"- {tag}" for tag in tags)
    yield from ("---", "")


def card_introduction(card: CardFacts) -> Iterator[str]:
    """Render the heading, what a person has yet to fill in, and what the file is."""
    report, options = card.report, card.report.options
    size, source = report.output_bytes, report.source_bytes
    yield f"# {as_name(options.output.stem)}"
    yield ""
    yield (
        f"> **Fill in** at the top of this file: {', '.join(card.blanks)}. Delete the `#` that "
        "such a line begins with, and this paragraph."
    )
    yield ""
    if options.dry_run:
        yield "> **A dry run's card**: nothing was converted, so that no errors are known."
        yield ""
    share = percentage(size, source)
    yield (
        f"**{card.title}, quantised for ComfyUI**: {gigabytes(size)}, {share} of the source's "
        f"{gigabytes(source)}. Made by convert_nvfp4.py {card.data['version']} from "
        f"{source_told(options.source)}."
    )
    for lora in options.merge_lora:
        yield f"Merged into it, with strength {lora.strength:g}: {source_told(lora.path)}."
    yield ""


def base_model(path: Path) -> str:
    """Name the repository of models that a file is in, on the Hub; "" for any other."""
    is_model = isinstance(path, HubPath) and path.place.kind == "model"
    return path.name_today if is_model else ""


def source_told(path: Path) -> str:
    """Name a file, with its repository and commit where it is on the Hub."""
    if not isinstance(path, HubPath):
        return as_code(path.name)
    kind, name, file = path.place.kind, path.name_today, path.place.path
    at = "" if kind == "model" else f"{kind}s/"
    where = f"[{name}](https://huggingface.co/{at}{name}) at commit {as_code(path.commit)}"
    return f"{as_code(file)} in {where}" if file else where


def card_loading(card: CardFacts) -> Iterator[str]:
    """Render where the file goes, and which ComfyUI and cards it needs."""
    load, work, asked = card.data["load"], card.data["work"], card.report.asked
    yield from ("## How to load it", "")
    if load["folder"]:
        setting = f", weight_dtype {load['weight_dtype']}," if load["weight_dtype"] else ""
        yield f"- Put {as_code(card.data['output'])} into `ComfyUI/models/{load['folder']}`."
        yield f"- ComfyUI's own node **{load['node']}**{setting} loads it, without custom nodes."
    else:
        yield f"- {load['text']}."
    _, _, needs = render_work(work) or ("", "", "")
    yield from [f"- It {needs}."] if needs else []
    yield from ["- Its maker's ComfyUI took it."] if asked and asked.is_known else []
    yield ""
    if not work["comfyui"]:
        return
    rows = ((CARDS[name].series, f"{speed:.1f}x") for name, speed in work["speed"].items())
    yield from markdown_table(("Cards", "speed over 16-bit, at most"), rows)
    run = work["run"]
    yield f"Estimated from published peaks, for the linear layers of a typical run: {run}."
    yield ""


def card_contents(card: CardFacts) -> Iterator[str]:
    """Render how layers are stored and multiplied, with their shares."""
    totals, matmuls = card.data["totals"], card.data["matmuls"]
    size = sum(total["bytes"] for total in totals.values())
    yield from ("## What is in it", "")
    stored = (
        (name, f"{total['layers']:,}", percentage(total["bytes"], size))
        for name, total in totals.items()
    )
    yield from markdown_table(("Stored as", "linear layers", "share of the bytes"), stored)
    if not matmuls:
        return
    multiplied = (
        (kind, f"{found['layers']:,}", percentage(found["share"], 1))
        for kind, found in matmuls.items()
    )
    yield from markdown_table(
        ("Multiplied as", "layers", "share of the linear weights"), multiplied
    )
    yield (
        f"{' '.join(map(matmul_told, matmuls))} Linear layers that are in no row are not quantised."
    )
    yield ""
    work = card.data["work"]
    if work["comfyui"]:
        four, eight, sixteen = (percentage(share, 1) for share in work["shares"].values())
        # Without a card, all formats count as multiplied: the newest class alone does that.
        on = CARDS[work["card"] or next(iter(CARDS))].series
        yield (
            f"On {on}, {four} of a step's multiply work is done in 4 bits, {eight} in 8 and "
            f"{sixteen} in 16."
        )
        yield ""


def matmul_told(kind: str) -> str:
    """Say in a sentence what a name of `matmuls` means, as W4A8."""
    weights, activations = re.fullmatch(r"W(\d+)A(\d+)", kind).groups()
    if weights == activations:
        return f"{kind}: weights and activations are of {weights} bits."
    return f"{kind}: weights of {weights} bits are multiplied by activations of {activations}."


def card_losses(card: CardFacts) -> Iterator[str]:
    """Render the error of each format, and the layers that stand out."""
    errors, outliers = card.data["errors"], card.data["outliers"]
    if not errors:
        return
    yield from ("## What was lost", "")
    rows = (
        (
            name,
            f"{row['layers']:,}",
            *(told_figure(row[key]) for key in ("median", "largest", "usual")),
        )
        for name, row in errors.items()
    )
    yield from markdown_table(("Format", "layers", "median error", "largest", "usual for it"), rows)
    yield (
        "Errors are relative RMSE: of a layer's decoded weight against the source's, or of its "
        "output where it was rounded by statistics of its inputs. One near the usual is the "
        "format's own, and no fault. How a picture changes, none of them tells: compare some with "
        "the original model's, from the same seeds."
    )
    yield ""
    if outliers:
        yield from (f"{in_number(len(outliers), 'layers stand out')}, the worst first:", "")
        for one in outliers[:NAMED]:
            yield f"- {as_code(one['layer'])}: {told_figure(one['error'])} in {one['format']}"
        yield ""


def told_figure(number: float | None) -> str:
    """Write an error, or a dash where there is no number."""
    return "-" if number is None else f"{number:.4f}"


def card_making(card: CardFacts) -> Iterator[str]:
    """Render how the file was made: what chose the formats, the command, the sources."""
    command = typed_command(card.report.options)
    fence = "`" * max(3, longest_run(command) + 1)
    yield from ("## How it was made", "", chosen_by(card), "", fence, command, fence, "")
    sources = card.data["origin"]["sources"].items()
    yield from markdown_table(
        ("Source file", "bytes"), ((as_code(name), f"{size:,}") for name, size in sources)
    )
    yield "The file's own header tells version, options and sources, too (`convert_nvfp4`)."


def chosen_by(card: CardFacts) -> str:
    """Say in a sentence what chose the formats of the layers."""
    options = card.report.options
    if options.gguf:
        return f"Formats follow the types of a GGUF: {source_told(options.gguf)}."
    if options.is_sized:
        return "Formats were chosen for the file's size, by each layer's measured error."
    if options.layer_config:
        return f"Formats are those of a layer config: {as_code(options.layer_config.name)}."
    preset = card.family or "smart" if options.preset == "auto" else options.preset
    what = "the preset `none`, and patterns," if preset == "none" else f"the preset `{preset}`"
    how = "and to what" if options.recipe == "mixed" else f"the recipe `{options.recipe}` to what"
    return f"Of the converter's rules, {what} decided which layers are quantised, {how}."
