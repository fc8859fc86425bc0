"""Hold what a ComfyUI answered, and tell what follows from it.

`ask` gets answers, `report` and `verify` show them. What a trouble means in ComfyUI stands in the
table of defects, as for all other defects of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nvfp4.asking.find import ComfyUI
from nvfp4.errors import examples
from nvfp4.model import bare
from nvfp4.notes import Note, Rank
from nvfp4.stored.defects import DEFECTS, Finding, Outcome, grouped

# What reports say where there was no ComfyUI to ask.
NOT_ASKED = "ComfyUI was not asked (--comfyui)"
# Of these the source may have its own, and the output has them from there.
INHERITED = ("missing", "unexpected", "stops")


class Trouble(NamedTuple):
    """Tell one thing that is wrong with a file in ComfyUI.

    kind: the end of a key of DEFECTS that begins with "asked". name: the tensor, "" for the file.
    """

    kind: str
    name: str
    detail: str

    @property
    def is_shape(self) -> bool:
        """Tell whether a tensor has another shape than its module."""
        return bool(self.name) and self.kind in ("stops", "shape")

    @property
    def finding(self) -> Finding:
        """Make a finding of it; an error that tells no tensor's shape is one of its own kind."""
        kind = "error" if self.kind == "stops" and not self.name else self.kind
        return Finding(defect=f"asked {kind}", name=self.name or "the file", detail=self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Tell how ComfyUI took one file.

    recognised: the class of its configuration, or which text encoder it is; "" for anything else.
    configuration: its fields, as text. tensors: how many the file has. left: how many of them no
    module was given, such as those of a VAE, which is not loaded. troubles: all that is wrong.
    unsure: why ComfyUI could not say, "" where it could.
    modules: {name in the file: class of the module that has it} of weights of two dimensions; ""
        for a linear layer of ComfyUI's own operations.
    """

    recognised: str
    configuration: dict[str, str]
    tensors: int
    left: int
    troubles: tuple[Trouble, ...]
    unsure: str
    modules: dict[str, str]

    @property
    def stopped(self) -> str:
        """Tell the error that ended loading, "" without one."""
        return next((trouble.detail for trouble in self.troubles if not trouble.name), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold the answer of a ComfyUI about a file, and about its source where that was asked, too.

    silence: why there is no answer, "" if there is one; `file` is None then.
    """

    comfyui: ComfyUI
    file: Taken | None = None
    source: Taken | None = None
    silence: str = ""

    @property
    def is_known(self) -> bool:
        """Tell whether ComfyUI could judge the file: it needs the values of nothing else."""
        return self.file is not None and not self.file.unsure

    @property
    def changed(self) -> str:
        """Tell what is read of the file's configuration otherwise than of the source's, or ""."""
        before, after = self.source, self.file
        if not (self.is_known and before and before.configuration and after.configuration):
            return ""
        old, new = (
            {"": one.recognised or "no class"} | one.configuration for one in (before, after)
        )
        different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(f"{key} {old.get(key)} -> {new.get(key)}".strip() for key in different)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """List the file's defects in this ComfyUI, apart from those that the source has, too."""
        if not self.is_known:
            return ()
        if not self.file.recognised:
            # Nothing was loaded then. Without a configuration, the error tells why.
            stopped = "" if self.file.configuration else self.file.stopped
            known = not self.source or self.source.recognised or self.source.unsure
            kind = "unrecognised" if known else "unknown"
            return (Trouble(kind, "", self.changed or stopped).finding,)
        inherited = self.inherited
        found = [trouble.finding for trouble in self.file.troubles if trouble not in inherited]
        return (*found, *([Trouble("changed", "", self.changed).finding] if self.changed else []))

    def findings_beside(self, linted: Iterable[Finding]) -> list[Finding]:
        """List the findings apart from those whose layer lint has found as bad a defect of.

        An error of the whole file is of the layers that it names.
        """
        worst: dict[str, Outcome] = {}
        for one in linted:
            worst[one.name] = max(one.outcome, worst.get(one.name, one.outcome))

        def is_told(asked: Finding) -> bool:
            own = {asked.name, asked.name.rpartition(".")[0]}
            if asked.defect == "asked error":
                own |= {name for name in worst if f"{asked.detail} ".endswith(f" {bare(name)} ")}
            return any(worst.get(name, Outcome.LOADS) >= asked.outcome for name in own)

        return [asked for asked in self.findings if not is_told(asked)]

    @property
    def inherited(self) -> list[Trouble]:
        """List the troubles that the file has from its source.

        A tensor of a wrong shape is refused in a 16-bit model, and taken in a quantised one.
        """
        source = self.source.troubles if self.source else ()
        unfit = {trouble.name for trouble in source if trouble.is_shape}
        return [
            one for one in self.file.troubles
            if (one in source and one.kind in INHERITED) or (one.is_shape and one.name in unfit)
        ]  # fmt: skip

    @property
    def problems(self) -> list[str]:
        """Say in a line for each kind why this ComfyUI would not run the file as it should."""
        return [
            f"{self.comfyui.title}: {DEFECTS[key].what}: {examples(names)}; "
            f"{DEFECTS[key].consequence}; to do: {DEFECTS[key].remedy}"
            for key, names in grouped(self.findings).items()
            if DEFECTS[key].outcome > Outcome.LOADS
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """List what is wrong in the source as well, for a report."""
        shared = self.inherited if self.is_known and self.file.recognised else []
        return tuple(
            Note(
                f"{self.comfyui.title}, of the source, too: {DEFECTS[key].what}: {examples(names)}",
                Rank.WARNING if DEFECTS[key].outcome > Outcome.LOADS else Rank.INFORMATION,
            )
            for key, names in grouped(trouble.finding for trouble in shared).items()
        )

    @property
    def sentence(self) -> str:
        """Say in one line what ComfyUI made of the file."""
        title = self.comfyui.title
        title += f" ({self.comfyui.named_by})" if self.comfyui.named_by.isupper() else ""
        if self.silence:
            return f"{title} was not asked: {self.silence}"
        if not self.is_known:
            return f"{title} cannot tell about this file: {self.file.unsure}"
        if self.problems:
            return f"{title} does not take this file as it should"
        if any(trouble.finding.outcome > Outcome.LOADS for trouble in self.inherited):
            return f"{title} takes neither the source nor this file as it should"
        same = " as in the source" if self.source else ""
        count, left = self.file.tensors, self.file.left
        takes = f"{count - left:,} of {count:,}" if left else f"all {count:,}"
        return f"{title} recognises {self.file.recognised}{same}, and takes {takes} tensors"

    @property
    def data(self) -> dict[str, object]:
        """Make it ready for JSON, without folders."""
        taken = self.file
        return {
            "version": self.comfyui.version or None,
            "named_by": self.comfyui.named_by,
            "answer": self.sentence,
            "recognised": taken.recognised or None if taken else None,
            "configuration": taken.configuration if taken else {},
            "changed": self.changed or None,
            "tensors": taken.tensors if taken else None,
            "left": taken.left if taken else None,
            "problems": self.problems,
        }
