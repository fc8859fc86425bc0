"""Statistics of what the linear layers of a model are given, call by call.

Needs torch and safetensors only. For each layer it keeps sums, so that calls, prompts and
recordings add up:

  L.calls             I64 []     calls seen
  L.tokens            I64 []     input rows sampled, of all calls together
  L.sum               F64 [K]    of each channel over the sampled rows: mean = sum / tokens
  L.sum_of_squares    F64 [K]    mean square = sum_of_squares / tokens
  L.absmax            F32 [K]    of each channel, over all rows of all calls
  L.block_histogram   I64 [322]  largest magnitudes of blocks of 16 channels, see BINS
  L.quantisation      F64 [2]    squared error and energy of sampled rows as dynamic NVFP4

and appends a line per call to a log: format, mode, layer, scale, amax and shape, tab-separated.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FORMAT, VERSION = "nvfp4_recording", "1"
BLOCK_SIZE = 16
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_MAX = 448.0
NVFP4_MAX = E2M1_VALUES[-1] * E4M3_MAX  # scale = amax / 2688, as ComfyUI takes it dynamically

# Bin 0 holds blocks below 2**-24 and zeros, bin i those from 2**(-24 + (i - 1) / 8) up, the last
# one those from 2**16 up.
FIRST_OCTAVE, LAST_OCTAVE, BINS_PER_OCTAVE = -24, 16, 8
BINS = (LAST_OCTAVE - FIRST_OCTAVE) * BINS_PER_OCTAVE + 2
LOG_LINES_HELD = (
    1024  # calls whose largest magnitude stays on the device: fetching one waits for it
)

Facts = dict[str, torch.Tensor]


def nvfp4_error(rows: torch.Tensor, block_amax: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """[2]: squared error of rows [t, K] quantised to NVFP4 at scale amax / 2688, and energy."""
    scale = (amax / NVFP4_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    block_scale = (block_amax / E2M1_VALUES[-1] / scale).clamp(max=E4M3_MAX)
    step = block_scale.to(torch.float8_e4m3fn).float() * scale
    values = torch.tensor(E2M1_VALUES, device=rows.device)
    blocks = rows.unflatten(1, (-1, BLOCK_SIZE)).abs()
    scaled = blocks / step.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    rounded = values[torch.bucketize(scaled, (values[1:] + values[:-1]) / 2)]
    error = rounded * step.unsqueeze(-1) - blocks
    return torch.stack([error.square().sum(), blocks.square().sum()])


def histogram(block_amax: torch.Tensor) -> torch.Tensor:
    """[BINS]: how many blocks have their largest magnitude in each bin; waits for no device."""
    octaves = (block_amax.log2() - FIRST_OCTAVE) * BINS_PER_OCTAVE
    bins = octaves.floor().clamp(-1, BINS - 2) + 1
    return torch.histc(bins.float(), bins=BINS, min=-0.5, max=BINS - 0.5)


def facts_of(rows: torch.Tensor, sample: torch.Tensor) -> Facts:
    """What one call adds: rows [T, K] of any float dtype, and the indices of the sampled ones."""
    low, high = rows.aminmax(dim=0)
    absmax = torch.maximum(-low, high).float()
    amax, picked = absmax.amax(), rows[sample].float()
    padded = torch.nn.functional.pad(picked, (0, -picked.shape[1] % BLOCK_SIZE))
    block_amax = padded.unflatten(1, (-1, BLOCK_SIZE)).abs().amax(-1)
    return {
        "amax": amax,
        "absmax": absmax,
        "sum": picked.sum(0),
        "sum_of_squares": picked.square().sum(0),
        "block_histogram": histogram(block_amax),
        "quantisation": nvfp4_error(padded, block_amax, amax),
    }


def add(total: Facts, more: Facts) -> None:
    """Add one call, or another recording of the same layer, in place."""
    for name, value in more.items():
        if name == "absmax":
            torch.maximum(total[name], value, out=total[name])
        else:
            total[name] += value


class Recording:
    """NAME.log and NAME.safetensors in a folder; goes on with what is there already."""

    def __init__(self, folder: Path, name: str):
        self.path, self.log = folder / f"{name}.safetensors", folder / f"{name}.log"
        self.configure()
        self.generator = torch.Generator().manual_seed(0)
        self.model = self.last = lambda: None
        self.last_facts: Facts = {}
        self.parent = ""
        self.seen: dict[str, Facts] = {}  # of this prompt, on the device
        self.calls: dict[str, tuple[int, int]] = {}
        self.pending: list[tuple[str, torch.Tensor, tuple[int, ...]]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.layers = self.load() if self.path.exists() else {}

    def configure(self, pattern: str = "", tokens: int = 256) -> None:
        """Which layers to record from now on, and how many input rows of each call."""
        self.pattern, self.tokens = re.compile(pattern), tokens

    def load(self) -> dict[str, Facts]:
        with safe_open(self.path, "pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise RuntimeError(f"{self.path} is no recording; choose another name or folder")
            layers: dict[str, Facts] = {}
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                layer, _, part = key.rpartition(".")
                layers.setdefault(layer, {})[part] = file.get_tensor(key)
        return layers

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Record every linear layer of a model while it is sampled; writes the file at the end."""
        other = self.model()
        if other is not None and other is not model:
            raise RuntimeError(f"two models record as {self.path}; give each a name of its own")
        self.model = weakref.ref(model)
        layers = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "in_features") and self.pattern.search(name)
        }
        if not layers:
            raise RuntimeError(f"no linear layer of the model matches {self.pattern.pattern!r}")
        hooks = [
            module.register_forward_pre_hook(self.hook(name), with_kwargs=True)
            for name, module in layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.save()

    def hook(self, name: str):
        def observe(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            self.observe(name, args[0] if args else kwargs["input"])

        return observe

    @torch.no_grad()
    def observe(self, name: str, given: torch.Tensor) -> None:
        """One call of a layer. q, k and v are given the same tensor, which is measured once.

        Siblings only: elsewhere the same tensor may have been changed in place meanwhile, which
        an inference tensor does not tell.
        """
        rows = given.detach().reshape(-1, given.shape[-1])
        if not rows.numel():
            return
        parent = name.rpartition(".")[0]
        if self.last() is not given or self.parent != parent:
            sample = torch.randint(len(rows), (self.tokens,), generator=self.generator)
            if len(rows) <= self.tokens:
                sample = torch.arange(len(rows))
            self.last_facts = facts_of(rows, sample.to(rows.device, non_blocking=True))
            self.last, self.parent = weakref.ref(given), parent
        facts = dict(self.last_facts)
        self.pending.append((name, facts.pop("amax"), tuple(rows.shape)))
        if name in self.seen:
            add(self.seen[name], facts)
        else:
            self.seen[name] = {part: value.clone() for part, value in facts.items()}
        calls, tokens = self.calls.get(name, (0, 0))
        self.calls[name] = calls + 1, tokens + min(len(rows), self.tokens)
        if len(self.pending) >= LOG_LINES_HELD:
            self.write_log()

    def write_log(self) -> None:
        """Append a line per call; this is where the device is waited for."""
        lines = []
        by_device: dict[torch.device, list] = {}
        for entry in self.pending:
            by_device.setdefault(entry[1].device, []).append(entry)
        for entries in by_device.values():
            found = torch.stack([amax for _, amax, _ in entries]).tolist()
            for (name, _, shape), amax in zip(entries, found, strict=True):
                scale = amax / NVFP4_MAX
                lines.append(f"nvfp4\tdynamic\t{name}\t{scale:.6g}\t{amax:.6g}\t{shape}\n")
        self.pending.clear()
        with self.log.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(lines))

    def save(self) -> None:
        """Add what this prompt gave, and replace the file at once."""
        self.write_log()
        for name, facts in self.seen.items():
            more = {
                part: value.cpu().to(torch.int64 if part == "block_histogram" else torch.float64)
                for part, value in facts.items()
            }
            more["absmax"] = more["absmax"].float()
            calls, tokens = self.calls[name]
            more |= {"calls": torch.tensor(calls), "tokens": torch.tensor(tokens)}
            if name in self.layers:
                add(self.layers[name], more)
            else:
                self.layers[name] = more
        self.seen, self.calls = {}, {}
        tensors = {
            f"{name}.{part}": value
            for name, facts in self.layers.items()
            for part, value in facts.items()
        }
        broken = [key for key, value in tensors.items() if not value.isfinite().all()]
        if broken:
            print(f"NVFP4 recorder: NaN or Inf in the input of {broken[0].rpartition('.')[0]}")
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"format": FORMAT, "version": VERSION})
        partial.replace(self.path)
