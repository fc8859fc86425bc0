"""Record statistics of what a model's linear layers are given, call by call.

Needs torch and safetensors only. For each layer it keeps sums, so that calls, prompts and
recordings add up:

  L.calls             I64 []     calls seen
  L.tokens            I64 []     input rows sampled, of all calls together
  L.sum               F64 [K]    of each channel over the sampled rows: mean = sum / tokens
  L.sum_of_squares    F64 [K]    mean square = sum_of_squares / tokens
  L.absmax            F32 [K]    of each channel, over all rows of all calls
  L.block_histogram   I64 [322]  largest magnitudes of blocks of 16 channels, see BINS
  L.quantisation      F64 [2]    squared error and energy of sampled rows as dynamic NVFP4

and what second_moments.py adds if asked. Each call also appends a line to a log: format, mode,
layer, scale, amax and shape, tab-separated. The converter reads the file with --activation-stats;
analyze_input_scale_log.py reads the log.
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
# NVFP4's numbers, repeated here as this folder is copied into ComfyUI alone.
BLOCK_SIZE = 16
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_MAX = 448.0
# 2688: the global scale is amax / 2688, as ComfyUI takes it for activations without an input scale.
NVFP4_MAX = E2M1_VALUES[-1] * E4M3_MAX

# The histogram's bins, a part of the format: bin 0 holds zeros and blocks below 2**-24, bin i those
# from 2**(-24 + (i - 1) / 8) up, and the last one those from 2**16 up.
FIRST_OCTAVE, LAST_OCTAVE, BINS_PER_OCTAVE = -24, 16, 8
BINS = (LAST_OCTAVE - FIRST_OCTAVE) * BINS_PER_OCTAVE + 2
# Figures of up to 1024 calls stay on the device: fetching them makes the CPU wait for it.
CALLS_HELD = 1024

# What torch.compile, FSDP, activation checkpointing and Lightning put into the names of what they
# wrap; the converter's nvfp4/model.py has the same.
WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module|_forward_module"
WRAPPED = re.compile(rf"(?<![^.])({WRAPPERS})(\.|$)")

SUMS = ("sum", "sum_of_squares", "block_histogram", "quantisation")

Facts = dict[str, torch.Tensor]


@functools.cache
def e2m1_grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E2M1's values [8] and the edges between them [7] on a device.

    They are cached: sending them at every call would make the device wait.
    """
    values = torch.tensor(E2M1_VALUES)
    return values.to(device), ((values[1:] + values[:-1]) / 2).to(device)


def nvfp4_error(rows: torch.Tensor, block_amax: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Measure what quantising rows to NVFP4 loses: [2], the squared error and the energy.

    `rows` is float32 [t, K] with K padded to whole blocks, `block_amax` [t, K / 16], `amax` the
    scalar that the global scale amax / 2688 is made from, as ComfyUI does it for dynamic
    activations.
    """
    # An input of zeros has scale 0: divide by the least normal number instead.
    scale = (amax / NVFP4_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    block_scale = (block_amax / E2M1_VALUES[-1] / scale).clamp(max=E4M3_MAX)
    # The block scale as E4M3 stores it, decoded again.
    step = block_scale.to(torch.float8_e4m3fn).float() * scale
    values, edges = e2m1_grid(rows.device)
    blocks = rows.unflatten(1, (-1, BLOCK_SIZE)).abs()
    scaled = blocks / step.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    rounded = values[torch.bucketize(scaled, edges)]
    error = rounded * step.unsqueeze(-1) - blocks
    return torch.stack([error.square().sum(), blocks.square().sum()])


def histogram(block_amax: torch.Tensor) -> torch.Tensor:
    """Count blocks by their largest magnitude: [BINS], on the device of `block_amax`.

    `histc` is used because, unlike `bincount`, it makes the CPU wait for no device.
    """
    octaves = (block_amax.log2() - FIRST_OCTAVE) * BINS_PER_OCTAVE
    bins = octaves.floor().clamp(-1, BINS - 2) + 1
    return torch.histc(bins.float(), bins=BINS, min=-0.5, max=BINS - 0.5)


def facts_of(rows: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Measure one call: the largest magnitude of all, that of each channel, and the sums.

    `rows` [T, K] are all rows, which maxima are of, and `picked` [t, K] the sampled ones, which
    SUMS are of. The sums come in one tensor, as small operations cost a GPU more than their
    arithmetic.
    """
    absmax = torch.maximum(-rows.amin(0), rows.amax(0)).float()
    amax, picked = absmax.amax(), picked.float()
    # Zeros fill the last block; they change no maximum and no error.
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
    """Split the sums of `facts_of` into {part: tensor}, on the CPU, in the file's dtypes."""
    channels = len(absmax)
    parts = sums.cpu().double().split([channels, channels, BINS, 2])
    facts = {"absmax": absmax.cpu(), **dict(zip(SUMS, parts, strict=True))}
    return facts | {"block_histogram": facts["block_histogram"].long()}


# What safetensors calls the dtypes of a recording.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


def write(path: Path, metadata: dict[str, str], parts: dict[str, Part]) -> None:
    """Write a safetensors file from parts that are made one after another.

    All parts together would not fit into memory, which `safetensors.torch.save_file` would need.
    Sorted by item size, so that each tensor starts at a multiple of its own. Raises OSError.
    """
    header, end = {"__metadata__": metadata}, 0
    # Larger items first, so that every tensor starts at a multiple of its item size.
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
    """Add another recording of the same layer to `total`, in place; of maxima the larger stays."""
    for name, value in more.items():
        if name == "absmax":
            torch.maximum(total[name], value, out=total[name])
        else:
            total[name] += value


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Find {name: linear layer} of a model, named as in its file.

    Wrappers put a part of their own into names, which WRAPPED and a leading `module.` are; a layer
    that is wrapped itself counts once, by what is inside.
    """
    found = {}
    for name, module in model.named_modules():
        # The wrapper, which comes first, answers for the layer inside.
        if hasattr(module, "in_features"):
            plain = re.sub(r"^(module(\.|$))+", "", WRAPPED.sub("", name)).removesuffix(".")
            found[plain] = module
    return found


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Have code of torch.compile run eagerly in the `with` block, so that hooks are called.

    What was compiled before the hooks were there goes on without them, and with them it would be
    compiled anew for every layer. Before torch 2.6, which cannot set that aside, it is dropped and
    compiled again after the block.
    """
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    from torch._dynamo import config

    torch.compiler.reset()
    try:
        with config.patch(disable=True):
            yield
    finally:
        torch.compiler.reset()


class Recording:
    """Keep NAME.log and NAME.safetensors in a folder, and go on with what is there already.

    One of them may be used for many prompts, one after another. Statistics stay on the model's
    device for up to CALLS_HELD calls, and in memory until the file is written at a prompt's end.
    `is_modelled` says in the file that its inputs are no prompts', so that no scale is taken of it;
    `encoder` what ComfyUI calls the text encoder that is watched, "" for a diffusion model. Of an
    encoder's inputs the rows of padding are left out, which its attention mask tells.
    """

    def __init__(self, folder: Path, name: str, *, is_modelled: bool = False, encoder: str = ""):
        self.is_modelled, self.encoder = is_modelled, encoder
        self.mask: torch.Tensor | None = None  # of the encoder's call that is under way, [B, T]
        self.path, self.log = folder / f"{name}.safetensors", folder / f"{name}.log"
        self.watched: dict[str, int] = {}  # {layer: columns} while a model is sampled
        self.generators: dict[torch.device, torch.Generator] = {}

    def load(self) -> dict[str, Facts]:
        """Read {layer: its sums} from the file; its second moments go to `moments`.

        Raises RuntimeError for a safetensors file that is no recording, which must not be
        overwritten.
        """
        if not self.path.exists():
            return {}
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RuntimeError(f"{self.path} is no recording; choose another name or folder")
            if metadata.get("encoder", "") != self.encoder:
                raise RuntimeError(f"{self.path} is of another model: choose another name")
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
        """Record matching linear layers while a model is sampled, and write the file at the end.

        `pattern` is searched in layer names; `tokens` rows are sampled at each call.
        `second_moments` is one of LAYERS; layers wider than `widest` have none. Raises
        RuntimeError, before sampling, where the file is no recording or of other widths, or another
        node records into it.
        """
        if self.watched:
            raise RuntimeError(f"two recorders write {self.path}: give each a name of its own")
        layers = {
            name: module
            for name, module in linear_layers(model).items()
            if re.search(pattern, name)
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
        if self.encoder:
            hooks.append(model.register_forward_pre_hook(self.note_mask, with_kwargs=True))
        try:
            with uncompiled():
                yield
            if not self.called:
                print(
                    f"NVFP4 recorder: none of {len(layers)} layers was called: is the model run by "
                    "something else, such as TensorRT?"
                )
        finally:
            for hook in hooks:
                hook.remove()
            try:
                self.save()
            except OSError as error:  # a full disk must not cost the picture that was sampled
                print(f"NVFP4 recorder: this prompt is not in {self.path}: {error}")
            finally:
                self.watched = {}

    def begin(self, widths: dict[str, int], tokens: int, squared: dict[str, int]) -> None:
        """Go on with the file as it is now; it may have been deleted to start again.

        `widths` is {layer: columns} of what is watched, `squared` the same of the layers with
        second moments. Raises RuntimeError where the file has a layer of other columns.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.moments = SecondMoments(squared)
        self.layers: dict[str, Facts] = self.load()
        for name, facts in self.layers.items():
            if name in widths and len(facts["absmax"]) != widths[name]:
                raise RuntimeError(f"{self.path} is of another model: choose another name")
        self.watched, self.tokens, self.called = widths, tokens, False
        # The input that was measured last, as a weak reference that keeps no memory alive.
        self.last = lambda: None
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # maxima, sums; on the device
        self.calls: dict[str, tuple[int, int]] = {}  # calls and sampled rows since the last settle
        self.pending: list[tuple[str, torch.Tensor, tuple[int, ...]]] = []  # lines for the log

    def hook(self, name: str):
        """Make the forward hook that hands a layer's input to `observe`."""

        def observe(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            self.observe(name, args[0] if args else kwargs["input"])

        return observe

    def note_mask(self, _module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Note an encoder's attention mask [B, T], its second argument, before each of its calls.

        Without one its padding is attended as other tokens are, and counts.
        """
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        is_mask = isinstance(mask, torch.Tensor) and mask.dim() == 2
        self.mask = mask.bool() if is_mask else None

    def rows_of(self, given: torch.Tensor) -> torch.Tensor:
        """Return the rows [T, K] of an input [..., K], without those that the mask leaves out.

        Nothing that is made of padding reaches a picture, but most rows of a short prompt are that.
        """
        rows = given.detach().reshape(-1, given.shape[-1])
        if self.mask is None or self.mask.shape != given.shape[:-1]:
            return rows
        return rows[self.mask.flatten().to(rows.device)]

    @torch.no_grad()
    def observe(self, name: str, given: torch.Tensor) -> None:
        """Take in one call of a layer, whose input `given` is [..., K].

        Siblings such as q, k and v are given the same tensor, which is measured once. It is
        measured again for another module or another call of the same layer: the same object may
        have been changed in place meanwhile, which an inference tensor does not tell.
        """
        rows = self.rows_of(given)
        # An input without rows has no maximum.
        if not rows.numel():
            return
        parent = name.rpartition(".")[0]
        if self.last() is not given or self.parent != parent or name in self.given_to:
            self.picked = rows[self.sample(rows)]
            self.last_facts = facts_of(rows, self.picked)
            self.last, self.parent, self.given_to = weakref.ref(given), parent, set()
        self.given_to.add(name)
        self.called = True
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
        """Return indices of `tokens` rows, or of all; equal recordings get equal ones."""
        if len(rows) <= self.tokens:
            return torch.arange(len(rows), device=rows.device)
        if rows.device not in self.generators:
            self.generators[rows.device] = torch.Generator(rows.device).manual_seed(0)
        generator = self.generators[rows.device]
        size = (self.tokens,)
        # Drawn with repetition, as a permutation of all rows would take longer.
        return torch.randint(len(rows), size, generator=generator, device=rows.device)

    @torch.inference_mode()  # tensors made in it, as the sums may be, can be updated only in it
    def settle(self) -> None:
        """Log the calls that wait and add up their sums. This makes the CPU wait for the device."""
        pending, seen, counts = self.pending, self.seen, self.calls
        self.pending, self.seen, self.calls = [], {}, {}
        by_device: dict[torch.device, list] = {}
        for index, (_, amax, _) in enumerate(pending):
            by_device.setdefault(amax.device, []).append(index)
        lines = [""] * len(pending)
        for indices in by_device.values():
            # One transfer for each device; a model may be spread over several.
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
        """Write the file under another name, then replace the old one at once.

        Prints a line where an input had NaN or Inf. Raises OSError; the old file stays then.
        """
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
        if self.encoder:
            metadata["encoder"] = self.encoder
        if self.is_modelled:
            metadata["inputs_are"] = "modelled"
        if self.moments.first_of:
            metadata["inputs"] = json.dumps(self.moments.first_of)
        partial = self.path.with_name(self.path.name + ".partial")
        write(partial, metadata, parts)
        # In one step: a reader, or a crash, finds either the old file or the new one.
        partial.replace(self.path)
        self.moments = SecondMoments({})  # frees gigabytes until the next prompt begins
