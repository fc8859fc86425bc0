"""What a conversion does once: its job, and asking whether float16 holds everything."""

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4 import conversion, production
from nvfp4.options.table import Options
from nvfp4.tune import target_size

BIG = 1e5  # beyond float16


@pytest.fixture
def counted(monkeypatch):
    """How often float16 is asked for all tensors, and a job is made."""
    counts = Counter()

    def counting(module, name):
        function = getattr(module, name)

        def run(*arguments):
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, run)

    for module in (conversion, production, target_size):
        counting(module, "float16_overflows")
    counting(conversion, "make_job")
    counting(production, "make_job")
    return counts


def convert(folder, tensors, **options):
    save_file(tensors, folder / "m.safetensors")
    task = Options(
        source=folder / "m.safetensors",
        output=folder / "o.safetensors",
        preset="all",
        dtype="float16",
        quiet=True,
        **options,
    )
    return conversion.convert(task)


def weights(big: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {f"blocks.{i}.x.weight": torch.randn(64, 64, generator=generator) for i in range(4)} | {
        "conv.weight": torch.randn(4, 4, 4, generator=generator)
    }
    if big:
        found["conv.weight"][0, 0, 0] = BIG
    return found


@pytest.mark.parametrize(
    ("options", "big", "expected"),
    [
        ({}, False, (0, 1)),
        ({}, True, (1, 2)),
        ({"dry_run": True}, True, (1, 1)),
        ({"target_ratio": 0.4}, False, (1, 1)),
        ({"target_ratio": 0.4}, True, (1, 1)),
        ({"target_ratio": 0.4, "dry_run": True}, True, (1, 1)),
    ],
)
def test_float16_is_asked_once_and_a_job_made_once(tmp_path, counted, options, big, expected):
    """Only a value that turns up while writing costs a second job."""
    report = convert(tmp_path, weights(big), **options)
    asked, made = expected
    assert counted == Counter(float16_overflows=asked, make_job=made)
    assert ("1 tensor does not fit float16 and is float32: conv.weight" in report.notes) == big
    (plan,) = (plan for plan in report.plans if plan.ref.name == "conv.weight")
    assert plan.dtype == ("F32" if big else "F16")
    if not options.get("dry_run"):
        assert report.output_bytes == (tmp_path / "o.safetensors").stat().st_size
        stored = load_file(tmp_path / "o.safetensors")["conv.weight"]
        assert stored.dtype is (torch.float32 if big else torch.float16)
