"""Run one conversion from end to end, as the list of its phases.

Source, guides, plan, tuning, job, production, report: each phase is a function of a lower room
which takes records and returns one. Nothing else calls the phases in their order; the command line,
the Python interface and the benchmarks all come through `run_phases`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from nvfp4.asking.ask import ask_about_job
from nvfp4.asking.find import ComfyUI, find_comfyui
from nvfp4.asking.linear import modules_told, with_modules
from nvfp4.encode.compute import capability_here, describe_device, pick_device
from nvfp4.encode.float16 import float16_overflows
from nvfp4.errors import ConvertError, examples, in_number
from nvfp4.files import exists
from nvfp4.fit import Stage, stage_of
from nvfp4.guides.read import read_guides
from nvfp4.layout import Job, make_job
from nvfp4.model import Model
from nvfp4.notes import Note, Rank
from nvfp4.options import Options
from nvfp4.plan.make import card_notes, dynamic_notes, make_plans, shape_notes
from nvfp4.plan.records import TensorPlan, widen
from nvfp4.production import produce, refuse_problems, rehearse
from nvfp4.progress import SCREEN, phase
from nvfp4.ranks import Ranks, join_ranks, read_ranks
from nvfp4.read.checkpoint import file_bytes, read_header
from nvfp4.read.json_files import parse_json
from nvfp4.read.parts import refuse_lone_shard
from nvfp4.read.tensors import load_bytes
from nvfp4.report.data import Report
from nvfp4.report.texts import write_texts
from nvfp4.source.read import read_source
from nvfp4.stages import Observe, unobserved
from nvfp4.tune.activations import Tuned, tune_activations
from nvfp4.tune.fitting import settle_fit
from nvfp4.tune.target_size import SizedPlan, plan_for_size
from nvfp4.virtual import pinned, virtual_of
from nvfp4.write.checks import refuse_no_gain, refuse_text_targets
from nvfp4.write.journal import noted_revisions

# Of the tensors that a file has as its source has them, those of so many bytes are compared: norms
# and biases, which differ in each trained model.
COMPARED_BYTES = 1 << 20


def convert(options: Options, observe: Observe = unobserved) -> Report:
    """Run a conversion, or with `dry_run` plan it, and write the reports that it asks for.

    The Python interface; all else is as `run_phases` does it. Raises ConvertError, also for a
    report that cannot be written once the model is.
    """
    if not isinstance(options, Options):
        raise ConvertError(f"convert takes Options(source=..., output=...), not {options!r}")
    report = run_phases(options, observe)
    if read_ranks().is_first:
        write_texts(report)
    return report


def look_ahead(options: Options) -> tuple[Path, ...]:
    """Raise ConvertError for what keeps a conversion from being done, as far as headers tell it.

    For whoever converts several models, and would learn of the last one's problems after hours. No
    weight is read: with --target-size, which measures them, the output is not laid out. Returns all
    files that the conversion reads, which no other may write.
    """
    refuse_lone_shard(options.source)
    model = read_source(options).model
    refuse_text_targets(options, model)
    guides = read_guides(options, model)
    options = settle_fit(options, model, partial(make_plans, model=model, guides=guides)).options
    plans = make_plans(options, model, guides).plans
    if not options.target(model):
        refuse_no_gain(options, model, plans)
        refuse_problems(make_job(options, model, plans))
    return (*options.inputs, *model.files)


def stage_ahead(options: Options) -> Stage:
    """Estimate by headers alone what a conversion's file needs on the card of --fit."""
    return stage_of(options, read_source(options).model)


def is_converted(options: Options) -> bool:
    """Tell whether OUTPUT is what this conversion would write: complete, and made in the same way.

    For several conversions that were stopped, and are asked for again. The record in the file's
    header has to be the one that this conversion would write, which a dry run makes: version,
    options, names and sizes of the sources, formats. No input may be newer than the file. Models
    for high and low noise may be alike in all that, so that the tensors that are copied, up to
    COMPARED_BYTES each, have to have the source's bytes. Shards are never taken for complete.
    """
    output = options.written
    if options.output_sharded or not exists(output):
        return False
    try:
        there, metadata = read_header(output)
        record = parse_json(metadata["convert_nvfp4"])
    except (ConvertError, KeyError, ValueError):
        return False
    report = run_phases(dataclasses.replace(options, dry_run=True, quiet=True, comfyui=None))
    files = {*options.inputs, *(plan.ref.path for plan in report.plans)}
    newest = max(path.stat().st_mtime_ns for path in files if path.is_file())
    if record != report.origin or newest > output.stat().st_mtime_ns:
        return False
    copied = (
        plan.ref
        for plan in report.plans
        if not (plan.is_quantised or plan.ref.is_changed)
        and plan.dtype == plan.ref.dtype
        and plan.ref.nbytes <= COMPARED_BYTES
    )
    return all(
        ref.name in there and torch.equal(load_bytes(ref), load_bytes(there[ref.name]))
        for ref in copied
    )


@SCREEN
def run_phases(options: Options, observe: Observe = unobserved) -> Report:
    """Run a conversion, or with `dry_run` plan it. Raises ConvertError.

    What fails leaves nothing behind, unless `resume` keeps partial files to go on with. Each phase
    returns a record with its notes; they come together in the report, and only there. `observe` is
    called with the name of each stage of writing the output (see `stages`). Under `torchrun` all
    processes come here with the same options; each gets the report.
    """
    began = time.monotonic()
    pins = pin_sources(options, noted_revisions(options))
    refuse_lone_shard(options.source)
    # Ranks meet before anything can fail on one of them alone: the others would wait for it.
    with join_ranks() as ranks:
        if (shared := ranks.gather(pins)[0]) != pins:
            pinned(options.inputs, shared)
        if not ranks.is_first:
            options = dataclasses.replace(options, quiet=True)
        comfyui = find_comfyui(options.comfyui) if ranks.is_first else None
        planned = plan_conversion(options, ranks, comfyui)
        if comfyui:
            phase("asking ComfyUI", quiet=options.quiet)
        asked = ask_about_job(comfyui, planned.job)
        phase("preparing the output", quiet=options.quiet)
        if options.dry_run:
            outcome = rehearse(planned.job, planned.tuned.plans, ranks)
        else:
            outcome = produce(planned.job, ranks, observe)
    sized = planned.sized
    heard, unfit = (asked.notes, asked.problems) if asked else ((), ())
    return Report(
        options=outcome.job.options,
        plans=tuple(outcome.job.plans),
        origin=outcome.job.origin,
        source_bytes=planned.source_bytes,
        output_bytes=outcome.job.nbytes,
        notes=(*planned.notes, *outcome.notes, *heard),
        problems=(*outcome.problems, *unfit),
        damage=outcome.damage,
        curve=planned.tuned.curve,
        sizes=sized.sizes if sized else (),
        size_error=sized.error if sized else 0.0,
        stage=planned.stage,
        asked=asked,
        seconds=time.monotonic() - began,
        device=describe_device(planned.device),
    )


def pin_sources(options: Options, noted: dict[str, str]) -> dict[str, str]:
    """Stay with one commit of each repository on the Hub for the whole run, and tell which.

    noted: those that the run to go on with had. Returns what is pinned, {} without such sources.
    """
    for asked in dict.fromkeys(path.asked for path in virtual_of(options.inputs) if path.asked):
        phase(f"asking {asked}", quiet=options.quiet)
    pins = pinned(options.inputs, noted)
    for place, commit in pins.items():
        if not options.quiet and read_ranks().is_first:
            SCREEN.tell(f"reading {place} at commit {commit}")
    return pins


class Planned(NamedTuple):
    """Hold what a conversion is before anything is written: its job, where it runs.

    `source_bytes` is the size of its files; `stage` is what --fit stands for, None without it;
    `sized` is what --target-size found, None without it;
    `notes` are those of all phases so far.
    """

    source_bytes: int
    stage: Stage | None
    sized: SizedPlan | None
    tuned: Tuned
    job: Job
    device: torch.device
    notes: tuple[str, ...]


def refuse_measuring(options: Options, model: Model) -> None:
    """Raise ConvertError for a dry run that would measure weights which have to be fetched."""
    measuring = {
        "--target-size": options.target(model),
        "--w4a4-share": options.w4a4_share,
        "--pre-quant-scale": options.pre_quant_scale,
    }
    asked = [flag for flag, value in measuring.items() if value]
    if not options.dry_run or not asked:
        return
    files = sorted({path for ref in model.tensors.values() for path in ref.paths})
    if remote := [path for path in virtual_of(files) if path.is_remote]:
        raise ConvertError(
            f"--dry-run fetches headers alone, and {asked[0]} measures weights: leave one of them "
            f"out, or download the file first ({remote[0]})"
        )


def unread_values(options: Options, plans: Iterable[TensorPlan]) -> list[str]:
    """Note which values a dry run does not look at, as they would have to be fetched."""
    unseen = [
        plan.ref.name
        for plan in plans
        if plan.may_overflow and any(path.is_remote for path in virtual_of(plan.ref.paths))
    ]
    if not options.dry_run or not unseen:
        return []
    what = in_number(len(unseen), "tensors were not looked at: float16 may not hold them")
    return [Note(f"{what}; a dry run fetches headers alone: {examples(unseen)}", Rank.NOTE)]


def plan_conversion(options: Options, ranks: Ranks, comfyui: ComfyUI | None) -> Planned:
    """Run the phases from reading headers to the job, laid out to the byte. Raises ConvertError.

    comfyui: what the first rank may ask about a model of no family.
    """
    say = partial(phase, quiet=options.quiet)
    say("reading headers")
    # Only headers are read here; weights are read while they are measured or encoded.
    source = read_source(options)
    source_bytes = file_bytes(source.model)
    source = with_modules(source, *ranks.gather(modules_told(comfyui, source.model))[0])
    device = pick_device(options.device, ranks)
    refuse_text_targets(options, source.model)
    say("reading guides")
    guides = read_guides(options, source.model)
    say("planning")
    planner = partial(make_plans, model=source.model, guides=guides)
    fitted = settle_fit(options, source.model, planner)
    options = fitted.options
    refuse_measuring(options, source.model)
    sized = plan_for_size(options, source.model, planner, ranks, fitted.is_capped)
    plan = sized.plan if sized else planner(options)
    refuse_no_gain(options, source.model, plan.plans)
    tuned = tune_activations(options, plan.plans)
    plans = tuned.plans
    # --target-size has looked already, and a real run looks while it writes.
    unseen = unread_values(options, plans)
    if options.dry_run and not sized and not unseen:
        plans = widen(plans, float16_overflows(plans, options))
    notes = (
        *fitted.notes,
        *plan.notes,
        *unseen,
        *shape_notes(options, plans),
        *dynamic_notes(options, plans),
        *card_notes(options, plans, capability_here()),
        *source.notes,
        *tuned.notes,
    )
    job = make_job(options, source.model, plans)
    return Planned(source_bytes, fitted.stage, sized, tuned, job, device, notes)
