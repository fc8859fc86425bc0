"""Carry a job out, or rehearse it: encode its tensors, write and publish them.

`produce` writes through `write.partial_files` and notes progress in `write.journal`; each rank of a
torchrun encodes its share of the tensors, and the first one publishes. Quantised tensors are read
whole, all others in pieces. A value that float16 cannot hold is found here and makes the job start
again with other dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.encode.compute import NUMBA_HINT, Compute, pick_device, single_threaded, takes_long
from nvfp4.encode.float16 import cast, float16_overflows
from nvfp4.encode.layer import quantise
from nvfp4.encode.pieces import Piece, pieces_of, read_ahead, tensors_of_rank
from nvfp4.errors import ConvertError, Float16OverflowError, examples, in_number, printable
from nvfp4.files import make_folders
from nvfp4.layout import Job, make_job, marker_of, planned_tensors
from nvfp4.notes import Note, Rank
from nvfp4.numeric.damage import ROUNDED_WRONG_FROM, Damage
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.options import Options
from nvfp4.plan.records import TensorPlan, widen
from nvfp4.progress import SCREEN, phase, progress_bar, sized
from nvfp4.ranks import ALONE, Ranks
from nvfp4.reasons import Why
from nvfp4.stages import Observe, unobserved
from nvfp4.write.checks import output_problems
from nvfp4.write.journal import Journal
from nvfp4.write.partial_files import PartialFiles

# What the bar says in the place of a layer's name, while numba compiles what rounds it.
WAITING = "waiting for compiled kernels"


class Produced(NamedTuple):
    """Hold what became of a job: as it was carried out at last, its layers' errors, and notes.

    `damage` is {layer: Damage}, empty after a rehearsal; `problems` is what a rehearsal found that
    would keep the job from being done.
    """

    job: Job
    damage: dict[str, Damage]
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()


def rehearse(job: Job, plans: list[TensorPlan], ranks: Ranks) -> Produced:
    """Find the problems that would keep the job from being done; nothing is written.

    plans: as `produce` would get them, before tensors that float16 cannot hold were widened.
    """
    problems = output_problems(job)
    # The others would find the journal locked by the first one, which looks. A folder that is still
    # to be made has none.
    if not problems and ranks.is_first and job.options.output.parent.is_dir():
        problems = journal_problems(job, plans)
    return Produced(job, {}, tuple(outcome_notes(job, {})), tuple(problems))


def journal_problems(job: Job, plans: list[TensorPlan]) -> Sequence[str]:
    """List what `produce` would raise for the journal: another run, or one that is not this."""
    journal = Journal(job.options, ALONE)
    try:
        journal.rehearse()
        if journal.head:
            # The run to go on with knew of these tensors alone.
            journal.check(make_job(job.options, job.model, widen(plans, journal.widened)))
    except ConvertError as error:
        return error.problems
    return ()


def produce(job: Job, ranks: Ranks, observe: Observe = unobserved) -> Produced:
    """Carry the job out; a tensor that does not fit float16 makes it start again with float32.

    Raises ConvertError for what keeps it from being done, before the long work where it is known.
    All ranks of a torchrun come here, and all return the same.
    """
    refuse_problems(job)
    options, plans, notes = job.options, job.plans, []
    if options.make_folder:
        make_folders(job.files)
    with Journal(options, ranks) as journal:
        while True:
            # Known from an earlier attempt, or from the run that --resume goes on with.
            if journal.widened:
                # Every attempt starts from the plans as they came: `widened` has all that was found
                # so far.
                job = make_job(options, job.model, widen(plans, journal.widened))
                refuse_problems(job)  # wider tensors may lie in other shards
            notes += journal.begin(job)
            if journal.done and not options.quiet:
                SCREEN.tell(went_on(job, journal))
            try:
                damage, more = write_model(job, journal, ranks, observe)
                break
            except Float16OverflowError:
                journal.widened = float16_overflows(plans, options)
    return Produced(job, damage, (*outcome_notes(job, damage), *dict.fromkeys([*notes, *more])))


def went_on(job: Job, journal: Journal) -> str:
    """Say where a resumed run goes on."""
    every, done = (
        sum(plan.ref.nbytes for plan in plans)
        for plans in (job.plans, [plan for plan in job.plans if plan.ref.name in journal.done])
    )
    tensors = f"{len(journal.done):,} of {len(job.plans):,} tensors"
    return f"going on: {tensors} ({sized(done, every)}) are written already"


def refuse_problems(job: Job) -> None:
    """Raise ConvertError with all that is known to keep the output from being written."""
    if problems := output_problems(job):
        raise ConvertError(*problems)


def outcome_notes(job: Job, damage: dict[str, Damage]) -> list[str]:
    """List notes on what came otherwise than it was asked for.

    These are layers that lost most of their weights, and tensors that are float32 because float16
    cannot hold them. `damage` is {layer: Damage}.
    """
    notes = []
    lost = [layer for layer, found in damage.items() if found.relative_rmse > ROUNDED_WRONG_FROM]
    if lost:
        what = in_number(len(lost), "layers lose most of their weights")
        why = "which are too small for any scale; keep them 16-bit with --exclude"
        notes.append(Note(f"{what}, {why}: {examples(lost)}", Rank.WARNING))
    widened = [plan.ref.name for plan in job.plans if plan.reason.kind is Why.FLOAT16]
    if widened:
        what = in_number(len(widened), "tensors do not fit float16 and are float32")
        notes.append(Note(f"{what}: {examples(widened)}", Rank.INFORMATION))
    return notes


def write_model(
    job: Job, journal: Journal, ranks: Ranks, observe: Observe = unobserved
) -> tuple[dict[str, Damage], list[str]]:
    """Encode every tensor into partial files and publish them; return layers' errors and notes.

    Raises Float16OverflowError in all ranks, and leaves no file, if a tensor of any does not fit.
    """
    options = job.options
    plans = [
        plan for plan in tensors_of_rank(job.plans, ranks) if plan.ref.name not in journal.done
    ]
    marker = marker_of(job.plans) if ranks.is_first else {}
    dtype = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]]
    search = SCALE_SEARCHES[options.scale_search]
    device = pick_device(options.device, ranks)
    with (
        single_threaded() as threads,
        Compute(device, dtype, search, threads) as compute,
        PartialFiles(job, journal, ranks, observe) as output,
    ):
        # An overflow is not raised at once: the other ranks wait for this one at `gather`.
        overflows = False
        try:
            found = encode_tensors(plans, output, compute, options, observe)
        except Float16OverflowError:
            overflows, found = True, {}
        else:
            phase("syncing", quiet=options.quiet)
            for key, tensor in marker.items():
                output.append(key, tensor)
            own = [*plans, *(plan.bias for plan in plans if plan.bias)]
            output.flush([*marker, *(key for plan in own for key in planned_tensors(plan))])
        shares = ranks.gather((found, compute.notes, overflows))
        if any(overflows for *_, overflows in shares):
            output.discard()
            raise Float16OverflowError
        if ranks.is_first:
            output.publish()
        ranks.gather()  # a rank succeeds only if the whole output was published
    found = journal.done | {name: damage for found, *_ in shares for name, damage in found.items()}
    notes = [note for _, notes, _ in shares for note in notes]
    if journal.done:
        what = f"{len(journal.done)} of {len(job.plans)} tensors were there already"
        notes.insert(0, Note(what, Rank.INFORMATION))
    damage = {plan.ref.layer: found[plan.ref.name] for plan in job.plans if plan.is_quantised}
    return damage, notes


def encode_piece(
    piece: Piece, data: torch.Tensor, compute: Compute
) -> tuple[dict[str, list[torch.Tensor]], Damage | None]:
    """Encode or cast a piece: what to append to each output tensor, and the damage of quantising.

    data: as `read_ahead` yields it. What is of the whole layer, such as its configuration, comes
    with the first piece.
    """
    plan = piece.plan
    if plan.is_quantised:
        stored, damage = quantise(piece.part, data, compute)
        if piece.begin:
            whole, part = planned_tensors(plan), planned_tensors(piece.part)
            stored = {key: rows for key, rows in stored.items() if part[key] != whole[key]}
        return stored, damage
    kept = cast(piece, data)
    # A clone, as the reader fills its buffer again while this is written.
    stored = {plan.ref.name: [kept.clone() if kept is data else kept]}
    if plan.ref.config and not piece.begin:
        text = bytearray(plan.config_bytes)
        stored[f"{plan.ref.layer}.comfy_quant"] = [torch.frombuffer(text, dtype=torch.uint8)]
    return stored, None


def encode_tensors(
    plans: list[TensorPlan],
    output: PartialFiles,
    compute: Compute,
    options: Options,
    observe: Observe = unobserved,
) -> dict[str, Damage]:
    """Read, encode and write these tensors; return {tensor: Damage} of those that are quantised."""
    phase("loading kernels", quiet=options.quiet)
    quantised = [plan for plan in plans if plan.is_quantised]
    compute.compile(quantised, at_once=False)
    if NUMBA_HINT in compute.notes and takes_long(quantised) and not options.quiet:
        # It is of use before the work, not after it.
        SCREEN.tell(NUMBA_HINT.line)
    # Layers that have to wait for compiled kernels come last: sorting keeps the order otherwise.
    plans = sorted(plans, key=compute.waits_for_kernels)
    todo = [piece for plan in plans for piece in pieces_of(plan)]
    pinned, found = compute.device.type == "cuda", {}
    nbytes = sum(piece.nbytes for piece in todo)
    # Bytes that are copied take a part of the time that those of a quantised layer do.
    efforts = sum(map(compute.effort, todo))
    with progress_bar("converting", nbytes, efforts=efforts, quiet=options.quiet) as bar:
        for piece, data in read_ahead(todo, options.buffers, pinned=pinned, observe=observe):
            plan, name = piece.plan, piece.plan.ref.name
            bar.at(WAITING if compute.waits_for_kernels(plan) else printable(name))
            if plan.is_quantised:
                compute.prepare(plan)
                bar.at(printable(name))
            with observe("encode"):
                stored, damage = encode_piece(piece, data, compute)
            if damage:
                if piece.begin:
                    damage = Damage.total([found[name], damage], torch.ones(()))
                found[name] = damage
            for key, pieces in stored.items():
                for tensor in pieces:
                    output.append(key, tensor)
            if piece.end == plan.ref.nbytes:
                if plan.bias:  # noted first, as --resume takes a noted weight for a whole layer
                    output.finish(plan.bias.ref.name, None)
                output.finish(name, found.get(name))
            bar.update(piece.nbytes, compute.effort(piece))
    return found
