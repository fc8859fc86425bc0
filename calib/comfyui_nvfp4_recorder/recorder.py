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

and what second_moments.py tells if asked. It appends a line per call to a log: format, mode,
layer, scale, amax and shape, tab-separated.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from .second_moments import PARTS, Part, SecondMoments, chosen, part

FORMAT, VERSION = "nvfp4_recording", "1"
BLOCK_SIZE = 16
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_MAX = 448.0
NVFP4_MAX = E2M1_VALUES[-1] * E4M3_MAX  # scale = amax / 2688, as ComfyUI takes it dynamically

# Bin 0 holds blocks below 2**-24 and zeros, bin i those from 2**(-24 + (i - 1) / 8) up, the last
# one those from 2**16 up.
FIRST_OCTAVE, LAST_OCTAVE, BINS_PER_OCTAVE = -24, 16, 8
BINS = (LAST_OCTAVE - FIRST_OCTAVE) * BINS_PER_OCTAVE + 2
CALLS_HELD = 1024  # whose figures stay on the device: fetching them waits for it

SUMS = ("sum", "sum_of_squares", "block_histogram", "quantisation")

Facts = dict[str, torch.Tensor]


@functools.cache
def e2m1_grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """E2M1's values and the edges between them, sent to a device once: it would wait for it."""
    values = torch.tensor(E2M1_VALUES)
    return values.to(device), ((values[1:] + values[:-1]) / 2).to(device)


def nvfp4_error(rows: torch.Tensor, block_amax: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """[2]: squared error of rows [t, K] quantised to NVFP4 at scale amax / 2688, and energy."""
    scale = (amax / NVFP4_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    block_scale = (block_amax / E2M1_VALUES[-1] / scale).clamp(max=E4M3_MAX)
    step = block_scale.to(torch.float8_e4m3fn).float() * scale
    values, edges = e2m1_grid(rows.device)
    blocks = rows.unflatten(1, (-1, BLOCK_SIZE)).abs()
    scaled = blocks / step.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    rounded = values[torch.bucketize(scaled, edges)]
    error = rounded * step.unsqueeze(-1) - blocks
    return torch.stack([error.square().sum(), blocks.square().sum()])


def histogram(block_amax: torch.Tensor) -> torch.Tensor:
    """[BINS]: how many blocks have their largest magnitude in each bin; waits for no device."""
    octaves = (block_amax.log2() - FIRST_OCTAVE) * BINS_PER_OCTAVE
    bins = octaves.floor().clamp(-1, BINS - 2) + 1
    return torch.histc(bins.float(), bins=BINS, min=-0.5, max=BINS - 0.5)


def facts_of(rows: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What one call adds: the largest magnitude of rows [T, K] and of each channel, and SUMS over
    the picked rows in one tensor, as small operations cost a GPU more than their arithmetic.
    """
    absmax = torch.maximum(-rows.amin(0), rows.amax(0)).float()
    amax, picked = absmax.amax(), picked.float()
    padded = torch.nn.functional.pad(picked, (0, -picked.shape[1] % BLOCK_SIZE))
    block_amax = padded.unflatten(1, (-1, BLOCK_SIZE)).abs().amax(-1)
    sums = (
        picked.sum(0),
        picked.square().sum(0),
        histogram(block_amax),
        nvfp4_error(padded, block_amax, amax),
    )
    return amax, absmax, torch.cat(sums)


def split(absmax: torch.Tensor, sums: torch.Tensor) -> Facts:
    """{part: tensor} in the dtypes of the file."""
    channels = len(absmax)
    parts = sums.cpu().double().split([channels, channels, BINS, 2])
    facts = {"absmax": absmax.cpu(), **dict(zip(SUMS, parts, strict=True))}
    return facts | {"block_histogram": facts["block_histogram"].long()}


DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


def write(path: Path, metadata: dict[str, str], parts: dict[str, Part]) -> None:
    """A safetensors file of tensors that are made one after the other: all would not fit."""
    header, end = {"__metadata__": metadata}, 0
    parts = dict(sorted(parts.items(), key=lambda part: -part[1][0].itemsize))
    for name, (dtype, shape, _) in parts.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, make in parts.values():
            file.write(make().contiguous().view(-1).view(torch.uint8).numpy())


def add(total: Facts, more: Facts) -> None:
    """Add another recording of the same layer, in place."""
    for name, value in more.items():
        if name == "absmax":
            torch.maximum(total[name], value, out=total[name])
        else:
            total[name] += value


class Recording:
    """NAME.log and NAME.safetensors in a folder; goes on with what is there already."""

    def __init__(self, folder: Path, name: str):
        self.path, self.log = folder / f"{name}.safetensors", folder / f"{name}.log"
        self.watched: dict[str, int] = {}  # {layer: columns} while a model is sampled
        self.generators: dict[torch.device, torch.Generator] = {}

    def load(self) -> dict[str, Facts]:
        """{layer: its sums} of the file; its second moments go where they are added up."""
        if not self.path.exists():
            return {}
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RuntimeError(f"{self.path} is no recording; choose another name or folder")
            layers: dict[str, Facts] = {}
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                layer, _, name = key.rpartition(".")
                if name not in PARTS:
                    layers.setdefault(layer, {})[name] = file.get_tensor(key)
            self.moments.go_on(json.loads(metadata.get("inputs", "{}")), file.get_tensor)
        return layers

    @contextlib.contextmanager
    def watching(
        self,
        model: torch.nn.Module,
        pattern: str = "",
        tokens: int = 256,
        second_moments: str = "none",
        widest: int = 8192,
    ) -> Iterator[None]:
        """Record the linear layers that match while a model is sampled; writes the file at the end.

        Second moments are those of "inner blocks" or "all" of them with up to `widest` channels.

        Raises RuntimeError, before anything is sampled, where the file is no recording or one of
        a model of other widths, and where another node records into it already.
        """
        if self.watched:
            raise RuntimeError(f"two recorders write {self.path}: give each a name of its own")
        layers = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "in_features") and re.search(pattern, name)
        }
        if not layers:
            raise RuntimeError(f"no linear layer of the model matches {pattern!r}")
        widths = {name: module.in_features for name, module in layers.items()}
        names = chosen([*widths], second_moments)
        squared = {name: widths[name] for name in names if widths[name] <= widest}
        self.begin(widths, tokens, squared)
        hooks = [
            module.register_forward_pre_hook(self.hook(name), with_kwargs=True)
            for name, module in layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            try:
                self.save()
            except OSError as error:  # what was sampled must not be lost for it
                print(f"NVFP4 recorder: this prompt is not in {self.path}: {error}")
            finally:
                self.watched = {}

    def begin(self, widths: dict[str, int], tokens: int, squared: dict[str, int]) -> None:
        """Go on with the file as it is now, which may have been deleted to start again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.moments = SecondMoments(squared)
        self.layers: dict[str, Facts] = self.load()
        for name, facts in self.layers.items():
            if name in widths and len(facts["absmax"]) != widths[name]:
                raise RuntimeError(f"{self.path} is of another model: choose another name")
        self.watched, self.tokens = widths, tokens
        self.last = lambda: None  # the input that was measured last; not kept alive
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # on the device
        self.calls: dict[str, tuple[int, int]] = {}
        self.pending: list[tuple[str, torch.Tensor, tuple[int, ...]]] = []

    def hook(self, name: str):
        def observe(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            self.observe(name, args[0] if args else kwargs["input"])

        return observe

    @torch.no_grad()
    def observe(self, name: str, given: torch.Tensor) -> None:
        """One call of a layer. q, k and v are given the same tensor, which is measured once.

        Once for each sibling: elsewhere, or on another call, the same tensor may have been changed
        in place meanwhile, which an inference tensor does not tell.
        """
        rows = given.detach().reshape(-1, given.shape[-1])
        if not rows.numel():
            return
        parent = name.rpartition(".")[0]
        if self.last() is not given or self.parent != parent or name in self.given_to:
            self.picked = rows[self.sample(rows)]
            self.last_facts = facts_of(rows, self.picked)
            self.last, self.parent, self.given_to = weakref.ref(given), parent, set()
        self.given_to.add(name)
        self.moments.observe(name, rows, self.picked)
        amax, absmax, sums = self.last_facts
        self.pending.append((name, amax, tuple(rows.shape)))
        if name in self.seen:
            total = self.seen[name]
            torch.maximum(total[0], absmax, out=total[0])
            total[1].add_(sums)
        else:
            self.seen[name] = absmax.clone(), sums.clone()
        calls, tokens = self.calls.get(name, (0, 0))
        self.calls[name] = calls + 1, tokens + min(len(rows), self.tokens)
        if len(self.pending) >= CALLS_HELD:
            self.settle()

    def sample(self, rows: torch.Tensor) -> torch.Tensor:
        """Indices of some rows: always the same for the same calls."""
        if len(rows) <= self.tokens:
            return torch.arange(len(rows), device=rows.device)
        if rows.device not in self.generators:
            self.generators[rows.device] = torch.Generator(rows.device).manual_seed(0)
        generator = self.generators[rows.device]
        size = (self.tokens,)
        return torch.randint(len(rows), size, generator=generator, device=rows.device)

    @torch.inference_mode()  # where what is added to may have been made
    def settle(self) -> None:
        """Log the last calls and add up what they gave: here the device is waited for."""
        pending, seen, counts = self.pending, self.seen, self.calls
        self.pending, self.seen, self.calls = [], {}, {}
        by_device: dict[torch.device, list] = {}
        for index, (_, amax, _) in enumerate(pending):
            by_device.setdefault(amax.device, []).append(index)
        lines = [""] * len(pending)
        for indices in by_device.values():
            found = torch.stack([pending[index][1] for index in indices]).tolist()
            for index, amax in zip(indices, found, strict=True):
                name, _, shape = pending[index]
                scale = amax / NVFP4_MAX
                lines[index] = f"nvfp4\tdynamic\t{name}\t{scale:.6g}\t{amax:.6g}\t{shape}\n"
        with self.log.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(lines))
        for name, facts in seen.items():
            calls, tokens = map(torch.tensor, counts[name])
            more = split(*facts) | {"calls": calls, "tokens": tokens}
            if name in self.layers:
                add(self.layers[name], more)
            else:
                self.layers[name] = more

    def save(self) -> None:
        """Replace the file at once."""
        self.settle()
        for name, facts in self.layers.items():
            if not all(value.isfinite().all() for value in facts.values()):
                print(f"NVFP4 recorder: NaN or Inf in the input of {name}")
                break
        self.moments.settle({name: facts["absmax"] for name, facts in self.layers.items()})
        parts = {
            f"{layer}.{name}": part(value)
            for layer, facts in self.layers.items()
            for name, value in facts.items()
        }
        for layer, given in self.moments.inputs.items():
            parts |= {f"{layer}.{name}": made for name, made in given.parts().items()}
        metadata = {"format": FORMAT, "version": VERSION}
        if self.moments.first_of:
            metadata["inputs"] = json.dumps(self.moments.first_of)
        partial = self.path.with_name(self.path.name + ".partial")
        write(partial, metadata, parts)
        partial.replace(self.path)
        self.moments = SecondMoments({})  # what it held are gigabytes
