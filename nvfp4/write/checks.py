"""What is known to keep the output from being written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from nvfp4.errors import ConvertError, examples, gigabytes
from nvfp4.files import allocated, is_same, os_problem, target_problems, unfinished
from nvfp4.layout import Job
from nvfp4.model import Model, is_converted
from nvfp4.options import Options
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import read_header
from nvfp4.write.journal import Journal


def shard_problems(job: Job, named: list[Path]) -> Iterator[str]:
    """Shards that are there already: some of a run that was killed, or all of an older one."""
    known = [*named, job.index] if len(named) == len(job.layouts) else named
    older = [path for path in job.files if path.exists() and path not in known]
    there = examples([path.name for path in older or named])
    if older:
        yield f"{there}: exists; delete it, or old and new shards could mix"
    elif named and not job.options.resume:
        yield f"{there}: its run was killed while naming shards; --resume names the rest"


def output_problems(job: Job) -> list[str]:
    """What is known, before the long work, to keep the output from being written."""
    options, output, problems = job.options, job.options.output, []
    partial = [unfinished(path) for path in job.files]
    targets = [*job.files, *partial]
    try:
        if output.exists() and is_converted(job.model) and not is_ours(output):
            problems.append(
                f"{output}: exists, and this tool did not make it, but SOURCE is quantised: are "
                "they swapped? If not, delete it first"
            )
        for path in (*options.inputs, *job.model.files):
            for target in targets:
                if is_same(target, path):
                    problems.append(f"{target}: is an input of this conversion ({path})")
        for target in targets:
            problems += target_problems(target)
        named = Journal(options, Ranks()).named(job.layouts) if job.index else []
        if job.index:
            problems += shard_problems(job, named)
        if output.parent.is_dir():
            free = shutil.disk_usage(output.parent).free + sum(map(allocated, [*partial, *named]))
            if free < job.nbytes:
                need = f"{gigabytes(free)} are free, the output needs {gigabytes(job.nbytes)}"
                problems.append(f"{output.parent}: {need}")
    except OSError as error:
        problems.append(os_problem(error, output))
    return list(dict.fromkeys(problems))


def refuse_text_targets(options: Options, model: Model) -> None:
    """Raise ConvertError where a text file, such as --report, would cost another file."""
    problems, partial = [], unfinished(options.output)
    others = [*options.inputs, *model.files, options.output, options.written, partial]
    for target in [path for name in options.texts for path in (name, unfinished(name))]:
        if any(path == target or is_same(path, target) for path in others):
            problems.append(f"{target}: is another input or output of this conversion")
        try:
            problems += target_problems(target)
        except OSError as error:
            problems.append(os_problem(error, target))
        others.append(target)
    if problems:
        raise ConvertError(*problems)


def is_ours(path: Path) -> bool:
    """Whether this tool made a file."""
    try:
        return "convert_nvfp4" in read_header(path)[1]
    except ConvertError:
        return False
