"""Tell what --verify found, as text and as data: the verdict first.

`render_check` is what is printed, `check_data` what --json prints instead. The words of the errors
and of the next step are those of a conversion's summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nvfp4.asking.answers import NOT_ASKED
from nvfp4.errors import examples, gigabytes, in_number
from nvfp4.families import encoder_of, model_prefixes
from nvfp4.files import full_path
from nvfp4.formats.base import readable_formats
from nvfp4.options import __version__
from nvfp4.quantisers import QUANTISERS
from nvfp4.read.checkpoint import file_bytes
from nvfp4.report.lines import broken, labelled
from nvfp4.report.loading import loading_data
from nvfp4.report.usual import errors_data, outliers_data, render_errors
from nvfp4.stored.defects import DEFECTS, Finding, Outcome, grouped
from nvfp4.stored.needs import needed_comfyui
from nvfp4.verify import Check, was_rounded_by_statistics

# What the worst outcome of a file's defects means in ComfyUI.
VERDICTS = {
    Outcome.LOADS: "ComfyUI loads it as it should",
    Outcome.SLOWER: "ComfyUI loads it, and runs slower than it could",
    Outcome.WORSE: "ComfyUI loads it, with a poorer picture",
    Outcome.WRONG: "ComfyUI loads it: expect noise or black frames",
    Outcome.FAILS: "ComfyUI does not load it, or stops at its first step",
}


def render_findings(found: Iterable[Finding], width: int | None = None) -> list[str]:
    """Render defects, three lines for each kind, the worst outcome first.

    The lines tell outcome, count and what is wrong; what ComfyUI does with it and what to do; and
    examples of the layers or tensors concerned.
    """
    lines = []
    for key, where in grouped(found).items():
        defect = DEFECTS[key]
        lines += broken(f"  {defect.outcome.name:6} {len(where)} x {defect.what}", width, 7)
        lines += broken(f"         {defect.consequence}; to do: {defect.remedy}", width, 0)
        lines += broken(f"         {examples(where)}", width, 0)
    return lines


def counted_layers(check: Check) -> dict[str, int]:
    """Count quantised layers by format, in the order of the format table: {title: count}."""
    # Formats that no row describes are among the defects; of these, other programs' are counted.
    schemes = Counter(layer.scheme for layer in check.layers.values())
    schemes.update(one.detail for one in check.findings if one.defect == "other program")
    programs = [program for program, _ in QUANTISERS]
    titles = [*(row.title for row in readable_formats()), *dict.fromkeys(programs)]
    return {title: schemes[title] for title in titles if schemes[title]}


def verdict_texts(check: Check) -> list[str]:
    """Say what becomes of the file in ComfyUI, in one line, and a second for what is no model."""
    kinds = {key: DEFECTS[key].outcome > Outcome.LOADS for key in grouped(check.findings)}
    if kind := check.kind:
        inside = "" if kinds else "no defect found in its quantised layers"
        return [f"is {kind.title}, not {kind.instead}: {kind.what_to_do}", *filter(None, [inside])]
    told = VERDICTS[check.outcome]
    shards, plain = check.model.shards, "" if counted_layers(check) else "nothing is quantised; "
    if shards and check.outcome <= Outcome.LOADS:
        told = f"{plain}whole, but in {shards} shards, and ComfyUI takes one file"
    if "other source" in kinds:
        told = "nothing is known of its values"
    harmful = sum(kinds.values())
    if kinds and not harmful:
        return [f"{in_number(len(kinds), 'harmless defects')}: {told}"]
    return [f"{in_number(harmful, 'defects') if harmful else 'no defect found'}: {told}"]


def advice_on(check: Check) -> str:
    """Say what to do about all defects together, "" where nothing is to be done."""
    # A file that loads as it should needs no advice, whatever other programs think of it; what was
    # never converted cannot be converted again, and with another source nothing is known.
    parts = {suffix for layer in check.layers.values() for suffix in layer.parts}
    is_ours = "convert_nvfp4" in check.model.metadata
    converted = counted_layers(check) or parts - {"weight", "bias"} or is_ours
    own = [one.outcome for one in check.findings if one.defect != "other source"]
    if converted and max(own, default=Outcome.LOADS) > Outcome.LOADS:
        return "to have none of these, convert the original model again"
    return ""


def check_data(check: Check) -> dict:
    """Describe a check for JSON: docs/report.schema.json has all keys."""
    need = needed_comfyui(check.layers.values())
    forms = {name: layer.format for name, layer in check.layers.items() if layer.format}
    judged = {} if was_rounded_by_statistics(check.model.metadata) else check.damage
    took = check.asked is not None and check.asked.is_known
    shapes = {name: ref.shape for name, ref in check.model.tensors.items()}
    known = took or bool(model_prefixes(shapes) or encoder_of(shapes)[0])
    loads = check.kind is None and check.outcome < Outcome.WRONG
    sharded = check.model.shards > 0
    return {
        "task": "verification",
        "version": __version__,
        "file": check.model.files[0].name,
        "path": str(full_path(check.model.files[0])),
        "bytes": file_bytes(check.model),
        "tensors": len(check.model.tensors),
        "outcome": check.outcome.name,
        "verdict": "; ".join(verdict_texts(check)),
        "advice": advice_on(check) or None,
        "kind": check.kind.title if check.kind else None,
        "layers": counted_layers(check),
        "defects": [
            {
                "defect": key,
                "outcome": DEFECTS[key].outcome.name,
                "what": DEFECTS[key].what,
                "consequence": DEFECTS[key].consequence,
                "remedy": DEFECTS[key].remedy,
                "where": where,
            }
            for key, where in grouped(check.findings).items()
        ],
        "measured": len(check.damage),
        "errors": errors_data(check.damage, forms),
        "outliers": outliers_data(judged, forms),
        "load": loading_data(shapes, sharded=sharded, known=known) if loads else None,
        "needs": {
            "comfyui": need.version or None,
            "comfy_kitchen": need.kitchen or None,
            "formats": [*need.formats],
        },
        "comfyui": check.asked.data if check.asked else None,
    }


def render_check(check: Check, width: int | None = None) -> str:
    """Render what --verify found: verdict, defects, then what the file is and what it needs.

    width: of the terminal, by which long lines are broken; None breaks none. Defects that are worse
    than harmless get the advice to convert the original again, since this tool mends no quantised
    file.
    """
    data = check_data(check)
    counts = ", ".join(f"{count} {title}" for title, count in data["layers"].items())
    values = f"decoded and compared with the source: {in_number(data['measured'], 'layers')}"
    if was_rounded_by_statistics(check.model.metadata):
        told = (f"{title} {row['median'] or 0:.2g}" for title, row in data["errors"].items())
        why = "which enlarges the errors of weights and lessens those of outputs"
        errors = [f"rounded by statistics, {why}: {', '.join(told)}"] if data["errors"] else []
    else:
        errors = render_errors(data["errors"], data["outliers"])
    rows = {
        "file": [f"{data['path']}, {gigabytes(data['bytes'])}, {data['tensors']:,} tensors"],
        "layers": [counts or "nothing is quantised"],
        "values": [values] if check.damage else ["not compared (--source)"],
        "errors": errors,
        "ComfyUI": [
            data["load"]["text"] if data["load"] else "",
            str(needed_comfyui(check.layers.values())),
            check.asked.sentence if check.asked else NOT_ASKED,
        ],
    }
    lines = labelled("verdict", verdict_texts(check), width)
    lines += render_findings(check.findings, width)
    lines += labelled("to do", [data["advice"]] if data["advice"] else [], width)
    for label, texts in rows.items():
        lines += labelled(label, [text for text in texts if text], width)
    return "\n".join(lines)
