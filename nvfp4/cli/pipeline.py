"""Put the parts of a pipeline together: several models for the card of --fit, and their VAE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nvfp4.conversion import stage_ahead
from nvfp4.files import size_of
from nvfp4.fit import stage_of_vae, vae_in
from nvfp4.model import Model
from nvfp4.options import Options, Verification
from nvfp4.report.data import Report, json_line
from nvfp4.report.pipeline import PipelinePart, pipeline_data, render_pipeline


class Pipeline(NamedTuple):
    """Hold several conversions for one card: what is converted, and VAEs, which are not.

    tasks: the conversions; all of the call where --fit is not given. vaes: the options and headers
    of each VAE.
    """

    tasks: Sequence[Options | Verification]
    vaes: tuple[tuple[Options, Model], ...] = ()

    @classmethod
    def of(cls, tasks: Sequence[Options]) -> Pipeline:
        """Tell VAEs from what is converted; without --fit a VAE is a mistake, as in one call."""
        read = {number: vae_in(task.source) for number, task in enumerate(tasks) if task.fit}
        vaes = {number: model for number, model in read.items() if model}
        return cls(
            [task for number, task in enumerate(tasks) if number not in vaes],
            tuple((tasks[number], model) for number, model in vaes.items()),
        )

    @property
    def problems(self) -> list[str]:
        """List what keeps the parts from being one pipeline."""
        if self.vaes and not self.tasks:
            return [f"{self.vaes[0][0].source}: is a VAE, of which nothing is converted"]
        cards = {task.fit for task in self.tasks} | {task.fit for task, _ in self.vaes}
        return ["--fit has to be one card for all parts"] if len(cards) > 1 else []

    def told(self, reports: Iterable[Report]) -> str:
        """Tell what all parts take on the card, as text or with --json as a line of data.

        reports: of the conversions of this run; what an earlier run did is looked up. "" without
        --fit.
        """
        if not self.tasks or not self.tasks[0].fit:
            return ""
        made = {report.options.written: report for report in reports}
        parts = [part_of(task, made.get(task.written)) for task in self.tasks]
        size = next((part.stage.size for part in parts if part.stage.size), None)
        parts += [vae_part(task, model, size) for task, model in self.vaes]
        is_data = self.tasks[0].json
        return json_line(pipeline_data(parts)) if is_data else render_pipeline(parts)


def part_of(task: Options, report: Report | None) -> PipelinePart:
    """Make the part of a conversion, of this run or of an earlier one, which has no report."""
    stage = report.stage if report else stage_ahead(task)
    nbytes = report.output_bytes if report else size_of(task.written)
    return PipelinePart(task.source, task.written, nbytes, nbytes - stage.beside, stage)


def vae_part(task: Options, model: Model, size: tuple[int, int, int] | None) -> PipelinePart:
    """Make the part of a VAE, which decodes what the models sample."""
    stage, weights = stage_of_vae(task, model, task.size or size)
    path: Path = model.files[0]
    return PipelinePart(path, path, model.nbytes, weights, stage)
