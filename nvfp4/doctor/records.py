"""Hold what the doctor found: things that were looked at, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Advice(NamedTuple):
    """Say what to do.

    rank: "error" where no conversion can run, "warning", "note" or "hint". command: a line to copy.
    """

    rank: str
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Tell one thing that was looked at: the topic, its state, and what to do about it."""

    topic: str
    state: str
    advice: Sequence[Advice] = ()

    @property
    def fails(self) -> bool:
        """Tell whether no conversion can run like this."""
        return any(advice.rank == "error" for advice in self.advice)

    @property
    def data(self) -> dict:
        """Make it ready for JSON."""
        advice = [one._asdict() for one in self.advice]
        return {"topic": self.topic, "state": self.state, "advice": advice}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Describe a graphics card.

    capability: compute capability of NVIDIA's, None elsewhere. memory: bytes. driver: its version,
    "" where nothing told it. chip: AMD's name of the architecture, "" elsewhere.
    """

    name: str
    capability: tuple[int, int] | None
    memory: int
    driver: str = ""
    chip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFacts:
    """Hold what a Python told of itself.

    path: the interpreter. python: its version, "" where it gave no answer, which `silence` says
    why. versions: {package: version}. torch, kitchen: as `prober` tells them; {} where they are not
    installed, {"problem": ...} where they cannot be imported.
    """

    path: Path
    python: str
    versions: dict[str, str]
    torch: dict
    kitchen: dict
    silence: str = ""

    @property
    def cuda(self) -> str:
        """Tell which CUDA torch was built for, "" for another build, or without torch."""
        return self.torch.get("cuda") or ""

    @property
    def cards(self) -> list[Gpu]:
        """List the cards that torch can use; the compute capability that it tells of AMD's is no
        such thing."""
        is_amd = bool(self.torch.get("hip"))
        return [
            Gpu(name=one["name"], capability=None if is_amd else tuple(one["capability"]),
                memory=one["memory"], chip=one["chip"] if is_amd else "")
            for one in self.torch.get("cards", ())
        ]  # fmt: skip
