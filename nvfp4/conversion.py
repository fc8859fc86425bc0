"""One conversion from end to end."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import torch

from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.encode.compute import Compute, pick_device, single_threaded
from nvfp4.encode.float16 import cast, float16_overflows
from nvfp4.encode.layer import quantise
from nvfp4.encode.pieces import pieces_of, read_ahead, share_of
from nvfp4.errors import ConvertError, Float16OverflowError, examples, printable
from nvfp4.guides.read import read_guides
from nvfp4.layout import Job, make_job, marker_of, stored_tensors
from nvfp4.numeric.damage import ROUNDED_WRONG_FROM, Damage
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.options import TARGET, Options
from nvfp4.plan.make import make_plans
from nvfp4.plan.records import TensorPlan, widen
from nvfp4.progress import progress_bar
from nvfp4.ranks import Ranks, join_ranks
from nvfp4.reasons import Why
from nvfp4.report.data import Report
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source, stamps_of
from nvfp4.stages import Observe, unobserved
from nvfp4.tune.activations import share_w4a4, smooth
from nvfp4.tune.target_size import plan_for_size
from nvfp4.write.checks import output_problems, refuse_text_targets
from nvfp4.write.journal import Journal
from nvfp4.write.partial_files import PartialFiles


def write_model(
    job: Job, journal: Journal, ranks: Ranks, observe: Observe = unobserved
) -> tuple[dict[str, Damage], list[str]]:
    """Encode every tensor into partial files and publish them; returns layers' damage and notes."""
    options = job.options
    plans = [plan for plan in share_of(job.plans, ranks) if plan.ref.name not in journal.done]
    marker = marker_of(job.plans) if ranks.rank == 0 else {}
    dtype = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]]
    search = SCALE_SEARCHES[options.scale_search]
    device = pick_device(options.device, ranks)
    with (
        single_threaded() as threads,
        Compute(device, dtype, search, threads) as compute,
        PartialFiles(job, journal, ranks, observe) as output,
    ):
        overflows = False
        try:
            found = encode_share(plans, output, compute, options, observe)
        except Float16OverflowError:
            overflows, found = True, {}
        else:
            for key, tensor in marker.items():
                output.write(key, tensor)
            own = [*plans, *(plan.bias for plan in plans if plan.bias)]
            output.flush([*marker, *(key for plan in own for key in stored_tensors(plan))])
        shares = ranks.gather((found, compute.notes, overflows))
        if any(overflows for *_, overflows in shares):
            output.discard()
            raise Float16OverflowError
        if ranks.rank == 0:
            output.publish()
        ranks.gather()  # no rank ends well unless all of it is published
    found = journal.done | {name: damage for found, *_ in shares for name, damage in found.items()}
    if journal.done:
        journal.notes.append(f"{len(journal.done)} of {len(job.plans)} tensors were there already")
    damage = {plan.ref.layer: found[plan.ref.name] for plan in job.plans if plan.is_quantised}
    notes = [*journal.notes, *(note for _, notes, _ in shares for note in notes)]
    return damage, list(dict.fromkeys(notes))


def encode_share(
    plans: list[TensorPlan],
    output: PartialFiles,
    compute: Compute,
    options: Options,
    observe: Observe = unobserved,
) -> dict[str, Damage]:
    """Read, encode and write these tensors; returns the damage of those that were quantised."""
    todo = [piece for plan in plans for piece in pieces_of(plan)]
    compute.compile([plan for plan in plans if plan.is_quantised])
    pinned, found = compute.device.type == "cuda", {}
    nbytes = sum(piece.nbytes for piece in todo)
    with progress_bar("converting", nbytes=nbytes, quiet=options.quiet) as bar:
        for piece, data in read_ahead(todo, options.buffers, pinned=pinned, observe=observe):
            plan, name = piece.plan, piece.plan.ref.name
            bar.set_postfix_str(printable(name[-40:]), refresh=False)
            if plan.is_quantised:
                with observe("encode"):
                    stored, found[name] = quantise(plan, data, compute)
            else:
                with observe("encode"):
                    kept = cast(piece, data)
                # the reader's buffer is filled again while this is written
                stored = {name: [kept.clone() if kept is data else kept]}
                if plan.ref.config:
                    text = bytearray(plan.config_bytes)
                    stored[f"{plan.ref.layer}.comfy_quant"] = [
                        torch.frombuffer(text, dtype=torch.uint8)
                    ]
            for key, pieces in stored.items():
                for tensor in pieces:
                    output.write(key, tensor)
            if piece.end == plan.ref.nbytes:
                if plan.bias:  # noted first: a layer that is noted has its bias
                    output.finish(plan.bias.ref.name, None)
                output.finish(name, found.get(name))
            bar.update(piece.nbytes)
    return found


def convert(options: Options, observe: Observe = unobserved) -> Report:
    """Run a conversion, or with `dry_run` plan it. Raises ConvertError, leaving nothing behind.

    `observe` is told what the writing of the output is busy with.
    """
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$", options.source.name):
        raise ConvertError(
            f"{options.source}: is one shard of several; give the *.safetensors.index.json "
            "beside it, or the folder"
        )
    with join_ranks() as ranks:  # first, so that one that fails is known to all
        if not ranks.is_first:
            options = dataclasses.replace(options, quiet=True)
        model, adoption = open_source(options.source)
        model = dataclasses.replace(model, stamps=stamps_of(options, model))
        model, merged = merge_loras(options.merge_lora, model, partial=options.lora_partial)
        pick_device(options.device, ranks)
        refuse_text_targets(options, model)
        guides = read_guides(options, model)
        if options.target(model):
            plans, notes, sizes = plan_for_size(options, model, guides, ranks)
        else:
            (plans, notes), sizes = make_plans(options, model, guides), ()
        plans, shared, curve = share_w4a4(options, plans)
        plans, smoothing = smooth(options, plans)
        notes += [*adoption, *merged, *shared, *smoothing]
        if options.dry_run and not options.target(model):  # with a target it is known
            plans = widen(plans, float16_overflows(plans, options))
        carry_out = rehearse if options.dry_run else partial(write, observe=observe)
        job, damage, more = carry_out(make_job(options, model, plans), ranks)
    return Report(
        options=options,
        plans=tuple(job.plans),
        origin=job.origin,
        source_bytes=model.nbytes,
        output_bytes=job.nbytes,
        notes=(*notes, *outcome_notes(job, damage), *more),
        damage=damage,
        curve=curve,
        sizes=sizes,
    )


def outcome_notes(job: Job, damage: dict[str, Damage]) -> list[str]:
    """What came otherwise than it was asked for."""
    notes, target = [], job.options.target(job.model)
    lost = [layer for layer, found in damage.items() if found.relative_rmse > ROUNDED_WRONG_FROM]
    if lost:
        notes.append(
            f"{len(lost)} layers lose most of their weights, which are too small for any scale; "
            f"keep them 16-bit with --exclude: {examples(lost)}"
        )
    if 0 < target < job.nbytes:
        notes.append(f"{TARGET}: the file is larger, by {job.nbytes - target:,} bytes")
    widened = [plan.ref.name for plan in job.plans if plan.reason.kind is Why.FLOAT16]
    if widened:
        notes.append(f"{len(widened)} tensors do not fit float16: {examples(widened)}")
    return notes


def rehearse(job: Job, _: Ranks) -> tuple[Job, dict[str, Damage], list[str]]:
    """What would keep the job from being done."""
    return job, {}, [f"would fail: {problem}" for problem in output_problems(job)]


def refuse_problems(job: Job) -> None:
    if problems := output_problems(job):
        raise ConvertError(*problems)


def write(
    job: Job, ranks: Ranks, observe: Observe = unobserved
) -> tuple[Job, dict[str, Damage], list[str]]:
    """Carry the job out; a tensor that does not fit float16 makes it start again with float32."""
    refuse_problems(job)
    options, plans = job.options, job.plans
    with Journal(options, ranks) as journal:
        while True:
            if journal.widened:
                job = make_job(options, job.model, widen(plans, journal.widened))
                refuse_problems(job)  # of other shards
            journal.begin(job)
            try:
                return job, *write_model(job, journal, ranks, observe)
            except Float16OverflowError:
                journal.widened = float16_overflows(plans, options)
