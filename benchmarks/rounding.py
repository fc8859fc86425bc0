"""What rounding by activation statistics is worth, and what it costs.

encoder  the real sentence encoder, recorded by the ComfyUI node's own code while it embeds English
         text, converted by the command line, and run on other sentences with comfy_kitchen's layers
layer    seconds for a weight of this shape, plain and by statistics
model    a Wan-shaped model and a recording of its inner blocks, converted with and without it

Errors are relative RMSE, of layers their geometric mean; "error / amax's" is squared.

Usage: python benchmarks/rounding.py encoder
       python benchmarks/rounding.py layer [--shape 5120 5120]
       python benchmarks/rounding.py model FOLDER [--size 14b] [--blocks 40]
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
# The tokenizers library warns of forked processes otherwise; the model needs no hub.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import torch
from make_wan import SIZES, wan_shapes, write_gguf, write_model

import convert_nvfp4 as c
from comfyui_nvfp4.recorder import Recording
from comfyui_nvfp4.second_moments import chosen

# Layers of the sentence encoder that are quantised: all but the embeddings.
PACKED = r"encoder\."
# The first 1,000 sentences calibrate; those after them test on text of the same kind.
CALIBRATION = 1000
# For each method: the recording that it is given, and options of the converter.
METHODS = {
    "amax": ("", ["--scale-search", "amax"]),
    "search": ("", []),
    "random inputs": ("random", []),
    "32 sentences": ("few", []),
    "1,000 sentences": ("many", []),
}


def convert(source: Path, out: Path, *options: str) -> float:
    """Convert in a process of its own and return the seconds, start of Python included.

    source, out: paths; options: of the converter. Raises CalledProcessError where the conversion
    fails; its messages are on stderr then.
    """
    command = [sys.executable, str(ROOT / "convert_nvfp4.py"), str(source), str(out), "--quiet"]
    begin = time.perf_counter()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


# A trained model


def english() -> list[str]:
    """Return sentences of Python's own manual in a fixed random order.

    Every Python brings them along, so that nothing has to be downloaded.
    """
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    # The manual has headings and examples, too: only parts of a sentence's length are taken.
    found = [part for part in re.split(r"(?<=[.!?]) ", text) if 40 < len(part) < 300]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[index] for index in order]


def bert_of(model: torch.nn.Module) -> torch.nn.Module:
    """Find the transformer inside a sentence encoder.

    Layers in its checkpoint are named from this module on. Raises StopIteration without one.
    """
    return next(module for module in model.modules() if type(module).__name__ == "BertModel")


def record_text(folder: Path, name: str, sentences: list[str]) -> None:
    """Record the encoder while it embeds sentences, as the node does it in ComfyUI.

    Writes NAME.safetensors to `folder`; sixteen sentences are one call.
    """
    from encoder import checkpoint
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint().parent), device="cpu")
    # Every row is sampled, as calls of sixteen sentences are small.
    with Recording(folder, name).watching(bert_of(model), PACKED, 1 << 20, "all"):
        model.encode(sentences, batch_size=16, show_progress_bar=False)


def record_noise(folder: Path, name: str, layers: dict[str, int], rows: int) -> None:
    """Record normal rows instead of text: what statistics of the wrong inputs are worth.

    `layers` is {layer: columns}; each gets `rows` rows of independent channels.
    """
    recording, generator = Recording(folder, name), torch.Generator().manual_seed(0)
    recording.begin({}, rows, layers)
    for layer, columns in layers.items():
        recording.observe(layer, torch.randn(rows, columns, generator=generator))
    recording.save()


def errors_of(path: Path, sentences: list[str], activations: bool) -> tuple[float, float]:
    """Measure a converted file's errors on sentences: (layers, embeddings), relative RMSE.

    Layers are given their inputs of the float model, and their mean is geometric. The embeddings
    come from the whole model with all converted layers in place. `activations` chooses W4A4.
    """
    from encoder import PackedLinear, checkpoint
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    stored, given, outputs = load_file(path), {}, {}
    model = SentenceTransformer(str(checkpoint().parent), device="cpu")
    bert = bert_of(model)
    layers = [name.removesuffix(".comfy_quant") for name in stored if name.endswith("comfy_quant")]

    def keep(layer: str, x: torch.Tensor, y: torch.Tensor) -> None:
        # Inputs and outputs of the float model, which layers are measured on one by one.
        given[layer], outputs[layer] = x, y

    hooks = [
        bert.get_submodule(layer).register_forward_hook(
            lambda _, x, y, layer=layer: keep(layer, x[0], y)
        )
        for layer in layers
    ]
    expected = model.encode(
        sentences, batch_size=len(sentences), convert_to_tensor=True, show_progress_bar=False
    )
    logs = []
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        parent, _, child = layer.rpartition(".")
        linear = bert.get_submodule(layer)
        # Rounding by statistics moves the bias, too: the stored one belongs to the stored weight.
        linear.bias = torch.nn.Parameter(stored[f"{layer}.bias"])
        parts = (stored[f"{layer}.{part}"] for part in ("weight", "weight_scale_2", "weight_scale"))
        packed = PackedLinear(tuple(parts), linear, activations)
        with torch.inference_mode():
            error = (packed(given[layer]) - outputs[layer]).norm() / outputs[layer].norm()
        logs.append(math.log(error))
        setattr(bert.get_submodule(parent), child, packed)
    found = model.encode(
        sentences, batch_size=len(sentences), convert_to_tensor=True, show_progress_bar=False
    )
    error = (found - expected).norm() / expected.norm()
    return math.exp(statistics.mean(logs)), float(error)


def encoder(_: argparse.Namespace) -> None:
    """Print errors of each method in METHODS, on texts near to and far from the calibration.

    Two Markdown tables, one for each kind of text, with W4A16 and W4A4 side by side. Every error is
    also told squared over that of amax.
    """
    from encoder import SENTENCES, checkpoint

    source, text = checkpoint(), english()
    tests = {"the same manual": text[CALIBRATION:][:100], "other texts": SENTENCES}
    weights = [ref for ref in c.open_model(source).linear_weights if re.match(PACKED, ref.layer)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record_noise(folder, "random", {ref.layer: ref.shape[1] for ref in weights}, 8192)
        record_text(folder, "few", text[:32])
        record_text(folder, "many", text[:CALIBRATION])
        found = {kind: {} for kind in tests}
        for method, (recording, options) in METHODS.items():
            out = folder / "out.safetensors"
            stats = ["--activation-stats", str(folder / f"{recording}.safetensors")]
            convert(source, out, "--include", PACKED, *options, *(stats if recording else []))
            for kind, sentences in tests.items():
                errors = [errors_of(out, sentences, activations) for activations in (False, True)]
                found[kind][method] = [error for pair in errors for error in pair]
    for kind, rows in found.items():
        print(f"| on sentences of {kind} | W4A16: layers | error / amax's | embedding ", end="")
        print("| error / amax's | W4A4: layers | error / amax's | embedding | error / amax's |")
        print("|---" * 9 + "|")
        for method, errors in rows.items():
            cells = (
                f"{error:.4f} | {(error / amax) ** 2:.2f}"
                for error, amax in zip(errors, rows["amax"], strict=True)
            )
            print(f"| {method} | {' | '.join(cells)} |")


# Costs


def correlated(rows: int, columns: int, device: torch.device, seed: int) -> torch.Tensor:
    """Make inputs [rows, columns] of lower rank and some noise, channels of different scale.

    Inputs of trained layers are correlated; statistics are worth nothing on independent channels.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options = {"generator": generator, "device": device}
    hidden = torch.randn(rows, columns // 4, **options)
    mixed = hidden @ torch.randn(columns // 4, columns, **options).mul_(2 / math.sqrt(columns))
    return mixed.add_(torch.randn(rows, columns, **options), alpha=0.3) * (
        torch.rand(columns, **options) + 0.1
    )


def timed(run, device: torch.device) -> tuple[float, object]:
    """Time a run and return (seconds, what it returned); on a GPU the second run of two."""
    times, found = [], None
    for _ in range(2 if device.type == "cuda" else 1):  # the first one compiles
        begin = time.perf_counter()
        found = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times[-1], found


def layer(given: argparse.Namespace) -> None:
    """Print seconds for one weight of this shape, by the plain search and by statistics.

    given: has `shape`, rows and columns. The statistics are of made-up correlated inputs. The time
    is told with and without the factorisation, which layers of one input share; then the output
    error before and after.
    """
    device, (rows, columns) = c.pick_device("auto"), given.shape
    weight = torch.randn(rows, columns) * columns**-0.5
    # Twice as many rows as columns, so that the second moments have full rank.
    inputs = correlated(2 * columns, columns, device, 0)
    statistics = c.Statistics(
        mean=inputs.mean(0),
        second=inputs.t() @ inputs / len(inputs),
        rows=inputs[:256],
        # Random rows all differ.
        independent=1e6,
    )
    ref = c.TensorRef(name="l.weight", dtype="F32", shape=tuple(given.shape), path=Path(), begin=0,
                      nbytes=1)  # fmt: skip
    plan = c.TensorPlan(ref=ref, precision=c.NVFP4, reason="", dtype="F32",
                        moments=c.Moments(recordings=()))  # fmt: skip
    with (
        c.single_threaded() as threads,
        c.Compute(device, search=c.mse_block_scales, threads=threads) as compute,
    ):
        compute.compile([plan] * 10)
        there = weight.to(device)
        seconds, plain = timed(lambda: c.search_scales(plan, there, compute), device)
        print(f"{device.type} {rows} x {columns}: plain search {seconds:.3f} s")

        def again() -> object:
            # The statistics are there, their factorisation is not: as for a new input.
            compute.recalled = {plan.moments: statistics}
            return c.round_by_moments(plan, there, plain, compute)

        seconds, (best, _) = timed(again, device)
        print(f"by statistics {seconds:.3f} s more", end=", ")
        seconds, _ = timed(lambda: c.round_by_moments(plan, there, plain, compute), device)
        print(f"{seconds:.3f} s where another layer has the same input")
        print(f"output error {best.damage.output_before:.4f} -> {best.damage.output_after:.4f}")


def record_wan(folder: Path, shapes: dict[str, tuple], device: torch.device) -> Path:
    """Record made-up inputs of a model's inner blocks, as the node would; return the file.

    q, k and v of a self-attention share an input, and cross-attention's k and v of all blocks the
    text.
    """
    layers = {
        name.removesuffix(".weight"): shape[1]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    # Edge blocks are not recorded: the conversion below keeps them 16-bit.
    between = chosen([*layers], "inner blocks")
    inner = {name: width for name, width in layers.items() if name in between}
    recording = Recording(folder, "stats")
    recording.begin({}, 1 << 20, {name: width for name, width in inner.items() if width <= 8192})
    text = correlated(4096, 1, device, 0)
    for index, (name, width) in enumerate(inner.items()):
        if name.endswith(("cross_attn.k", "cross_attn.v")):
            text = text if text.shape[1] == width else correlated(4096, width, device, 0)
            rows = text
        elif not name.endswith(("self_attn.k", "self_attn.v")):
            rows = correlated(4096, width, device, index)
        recording.observe(name, rows)
    recording.save()
    return folder / "stats.safetensors"


def model(given: argparse.Namespace) -> None:
    """Make a model, convert it with and without statistics, and print both times.

    given: has folder, size and blocks. The model, its GGUF, the made-up recording and the output
    are written into the folder, and stay there: tens of GB for a whole 14B model.
    """
    folder, device = given.folder, c.pick_device("auto")
    folder.mkdir(parents=True, exist_ok=True)
    shapes = wan_shapes(given.size, given.blocks)
    index = write_model(folder, shapes, torch.bfloat16)
    write_gguf(folder / "model.gguf", shapes)
    begin = time.perf_counter()
    # Making the inputs is in this time, too.
    stats = record_wan(folder, shapes, device)
    size, taken = stats.stat().st_size, time.perf_counter() - begin
    print(f"recording: {size / 1e9:.2f} GB, made in {taken:.0f} s", flush=True)
    base = ["--gguf", str(folder / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8"]
    # Edge blocks stay 16-bit in both conversions, and have no statistics.
    base += ["--gguf-keep-edge-blocks-fp16", "--dtype", "float16"]
    out, report = folder / "out.safetensors", folder / "report.json"
    plain = convert(index, out, *base)
    print(f"plain: {plain:.1f} s", flush=True)
    aware = convert(index, out, *base, "--activation-stats", str(stats), "--report", str(report))
    rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
    rounded = sum(row.get("output_before") is not None for row in rows)
    print(
        f"by statistics: {aware:.1f} s, {aware / plain:.2f} times; {rounded} layers rounded by them"
    )


def main() -> None:
    """Run the benchmark that the command line names: encoder, layer or model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("encoder")
    one = tasks.add_parser("layer")
    one.add_argument("--shape", type=int, nargs=2, default=[5120, 5120])
    whole = tasks.add_parser("model")
    whole.add_argument("folder", type=Path)
    whole.add_argument("--size", default="14b", choices=SIZES)
    whole.add_argument("--blocks", type=int)
    given = parser.parse_args()
    # The names are those of the subcommands above.
    {"encoder": encoder, "layer": layer, "model": model}[given.task](given)


if __name__ == "__main__":
    main()
