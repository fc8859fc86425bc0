"""Find what keeps the output from being written, before hours of work.

`conversion` asks here once the job is laid out to the byte and no weight was read yet. All problems
of a step come back together, one line each, so that a user mends them in one go. Reading a path's
own state (links, locks, folders) stands in `files`; the journal tells which shards a killed run
left.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nvfp4.errors import ConvertError, exact_size, examples
from nvfp4.files import (
    allocated,
    exists,
    is_same,
    largest_file,
    os_problem,
    refused_by,
    target_problems,
    unfinished,
)
from nvfp4.layout import Job, bytes_in_output
from nvfp4.model import Model
from nvfp4.options import TARGET, Options
from nvfp4.plan.choosing import allowed_by
from nvfp4.plan.records import TensorPlan
from nvfp4.ranks import ALONE
from nvfp4.read.checkpoint import is_part_of_model
from nvfp4.read.origin import origin_text
from nvfp4.write.journal import Journal

# A quantised source that gets no layer encoded anew has to become smaller by this share at least.
LEAST_GAIN = 0.01


def shard_problems(job: Job, named: list[Path]) -> Iterator[str]:
    """Yield a line if shards of an earlier run lie where this run's shards are to go.

    `named` are the shards that the journal knows: a run that was killed while naming had given them
    their final names. Those alone ask for --resume, unless it is given; any other shard has to be
    deleted by the user, since old and new ones together would make a model of mixed weights.
    """
    # With every shard named, an index that is there belongs to the same run.
    known = [*named, job.index] if len(named) == len(job.layouts) else named
    older = [path for path in job.files if path.exists() and path not in known]
    there = examples([path.name for path in older or named])
    if older:
        yield f"{there}: exists; delete it, or old and new shards could mix"
    elif named and not job.options.resume:
        yield f"{there}: its run was killed while naming shards; --resume names the rest"


def nearest_folder(target: Path) -> Path:
    """Find the folder of a file, or of those that it would lie in the first that is there."""
    return next(folder for folder in target.absolute().parents if folder.is_dir())


def place_problems(options: Options, target: Path) -> Iterator[str]:
    """Find what would keep a file from being written, as `target_problems` does: a line for each.

    A folder that is missing is a problem only without --make-folder.
    """
    folder = target.parent
    if exists(folder):
        yield from target_problems(target)
    elif not options.make_folder:
        yield f"{folder}: no such folder; create it first, or give --make-folder"
    elif refused := refused_by(nearest_folder(target)):
        yield refused


def output_problems(job: Job) -> list[str]:
    """List what is known to keep the output from being written, one line a problem.

    Checked are: more bytes than --target-size allows, a target that is also an input, a missing
    folder, a forbidden or locked file,
    leftover shards, the largest file that the file system takes, and the disk's free space against
    the whole output. Partial files that will be
    overwritten count as free space. An OSError becomes a line, too; nothing is raised.
    """
    options, output, problems = job.options, job.options.output, []
    wanted = options.target(job.model)
    if 0 < wanted < job.nbytes:
        more = f"{job.nbytes - wanted:,} bytes"
        problems.append(f"{TARGET}: the file would be larger, by {more}; give that much more")
    partial = [unfinished(path) for path in job.files]
    targets = [*job.files, *partial]
    try:
        for path in (*options.inputs, *job.model.files):
            for target in targets:
                if is_same(target, path):
                    problems.append(f"{target}: is an input of this conversion ({path})")
        for target in targets:
            problems += place_problems(options, target)
        # This journal is not entered, only read: nothing is locked or changed by a check.
        named = Journal(options, ALONE).named(job.layouts) if job.index else []
        if job.index:
            problems += shard_problems(job, named)
        if output.parent.is_dir() or options.make_folder:
            folder = nearest_folder(output)
            # Partial files and shards of an earlier run are overwritten: their space is free.
            free = shutil.disk_usage(folder).free + sum(map(allocated, [*partial, *named]))
            # A folder that takes no file, such as one of /sys, may have no space to tell of.
            if free < job.nbytes and not refused_by(folder):
                need = f"{exact_size(free)} are free, the output needs {exact_size(job.nbytes)}"
                problems.append(f"{output.parent}: {need}")
            largest = largest_file(folder)
            # In the words of the system, which would say so when the file is made.
            too_large = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            problems += [
                os_problem(too_large, unfinished(path))
                for path, layout in job.layouts.items()
                if layout.nbytes > largest
            ]
    except OSError as error:
        problems.append(os_problem(error, output))
    return list(dict.fromkeys(problems))  # several targets may lie in the same missing folder


def refuse_text_targets(options: Options, model: Model) -> None:
    """Raise ConvertError if a text output, such as that of --report, would overwrite another file.

    Compared are the text files and their `.partial` names with every input, with the model's files,
    with OUTPUT and its partial file, and with each other. Links to the same file count as the same.
    What tells of another model, such as its index, is refused, too. All problems are in the one
    error.
    """
    problems, partial = [], unfinished(options.output)
    others = [*options.inputs, *model.files, options.output, options.written, partial]
    for target in [path for name in options.texts for path in (name, unfinished(name))]:
        if any(path == target or is_same(path, target) for path in others):
            problems.append(f"{target}: is another input or output of this conversion")
        elif exists(target) and is_part_of_model(target):
            problems.append(f"{target}: is a part of a model, and would be overwritten")
        try:
            problems += place_problems(options, target)
        except OSError as error:
            problems.append(os_problem(error, target))
        others.append(target)  # two text outputs must not be the same file either
    if problems:
        # A text and its `.partial` lie in the same missing folder.
        raise ConvertError(*dict.fromkeys(problems))


def refuse_no_gain(options: Options, model: Model, plans: list[TensorPlan]) -> None:
    """Raise ConvertError for a quantised source in which nothing would get smaller.

    That is so where the same recipe is applied again. To encode any layer anew, because a LoRA is
    merged into it or it gets another form, is a reason of its own.
    """
    layers = (plan for plan in plans if plan.is_quantised)
    if any(not x.keeps_codes or x.precision.title != x.ref.coding.title for x in layers):
        return
    saved = sum(max(0, plan.ref.nbytes - bytes_in_output(plan)) for plan in plans)
    # A few vectors that are cast to 16 bits are no reason to convert a file again.
    if saved > LEAST_GAIN * model.nbytes:
        return
    layers = " and ".join(f"{count} {name}" for name, count in model.quantised.items())
    origin, almost = origin_text(model.metadata), "almost " if saved else ""
    what = f"{almost}nothing in it would get smaller"
    others = {plan.format for plan in plans if plan.is_layer and plan.ref.config}
    words = [form.kind for form in sorted(others) if form.option not in options.allowed]
    if words and (options.card or options.formats):
        what = f"its {' and '.join(words)} layers cannot be encoded again for {allowed_by(options)}"
    raise ConvertError(
        f"{options.source}: is converted already ({', '.join(filter(None, [origin, layers]))} "
        f"layers), and {what}; give the original 16- or 32-bit model, or options that lower its "
        "layers"
    )
