"""--verify: a file against its source."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from nvfp4.dtypes import SOURCE_FLOATS
from nvfp4.encode.compute import CPU_CHUNK, Compute, single_threaded
from nvfp4.errors import ConvertError, DamagedFileError, of_another_model
from nvfp4.formats.base import Format, layer_parts, marker_names
from nvfp4.model import Model, TensorRef, bare
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import ROUNDED_TO, ROUNDED_WRONG_FROM, WRONG_FROM, Damage, measure
from nvfp4.options import Verification
from nvfp4.progress import progress_bar
from nvfp4.read.checkpoint import open_model
from nvfp4.read.tensors import load, load_bytes, load_weight
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source
from nvfp4.stored.defects import Finding, Outcome
from nvfp4.stored.layers import StoredLayer, stored_layers, stored_parts, undecodable
from nvfp4.stored.lint import lint, lint_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a verification found; `render_check` makes text of it."""

    model: Model
    layers: dict[str, StoredLayer]
    findings: tuple[Finding, ...]
    damage: dict[str, Damage]

    @property
    def outcome(self) -> Outcome:
        return max((finding.outcome for finding in self.findings), default=Outcome.LOADS)


def decoded_damage(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    form: Format,
    compute: Compute,
) -> Damage:
    """Error of a stored layer against its original weight; padding is left out."""
    parts, scale = stored
    unit = torch.stack(compute.map(largest_magnitude, original)).amax()
    unit = torch.where(unit > 0, unit, torch.ones(()))  # a wrong scale may be of any size

    def measure_rows(rows: torch.Tensor, *some: torch.Tensor) -> Damage:
        return measure(rows.float() / unit, form.decode(*some, scale / unit))

    trimmed = (part[: len(original)] for part in parts)
    return Damage.total(compute.map(measure_rows, original, *trimmed), unit)


def misread(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    form: Format,
    compute: Compute,
) -> str:
    """How a layer that decodes to something else was packed, if another order explains it."""
    parts, scale = stored
    others = form.misreadings(parts)
    if not others:
        return "its scale or codes are of another weight"
    for what, reordered in others.items():
        damage = decoded_damage(original, (reordered, scale), form, compute)
        if damage.relative_rmse < WRONG_FROM:
            return what
    return "no other order of its codes and scales explains it"


def compare_kept(ref: TensorRef, other: TensorRef) -> str:
    """How a tensor that is not quantised differs from its original, rounding aside; or ""."""
    if not (ref.is_float and other.is_float):
        same = ref.dtype == other.dtype and torch.equal(load_bytes(ref), load_bytes(other))
        return "" if same else f"{other.dtype}, the source's is {ref.dtype}"
    chunks = (load_weight(one).flatten().split(CPU_CHUNK) for one in (ref, other))
    size = difference = 0.0
    for original, stored in zip(*chunks, strict=True):  # in float64, so little at once
        size += float(original.double().square().sum())
        difference += float((stored.double() - original.double()).square().sum())
    close = difference <= ROUNDED_TO**2 * size
    return "" if close else f"relative RMSE {math.sqrt(difference / (size or math.nan)):.2g}"


def compare_layer(
    ref: TensorRef, layer: StoredLayer, compute: Compute, limit: float = WRONG_FROM
) -> tuple[Damage | None, str]:
    """A quantised layer's error against its original, and what is wrong with it or ""."""
    original, stored = load_weight(ref), stored_parts(layer)
    smoothing = layer.parts.get("pre_quant_scale")
    if smoothing and smoothing.dtype in SOURCE_FLOATS and smoothing.shape == ref.shape[1:]:
        original = original.float() / load(smoothing).float()  # else lint has said so
    damage = decoded_damage(original, stored, layer.format, compute)
    wrong = not damage.relative_rmse < limit  # NaN is wrong, too
    return damage, misread(original, stored, layer.format, compute) if wrong else ""


def compare_tensor(
    ref: TensorRef,
    other: TensorRef,
    layer: StoredLayer | None,
    compute: Compute,
    limit: float = WRONG_FROM,
) -> tuple[Damage | None, str]:
    """A stored tensor against its original: a layer's error, and what is wrong or ""."""
    packed = ref.is_linear_weight and layer is not None and layer.format is not None
    expected = layer.format.parts(ref.shape)["weight"][1] if packed else ref.shape
    if other.shape != expected:
        return None, f"{list(other.shape)} for the source's {list(ref.shape)}"
    if not packed:
        return None, compare_kept(ref, other)
    reason = undecodable(layer)
    if reason:
        return None, f"not measured: {reason}"
    return compare_layer(ref, layer, compute, limit)


def was_rounded_by_statistics(metadata: dict[str, str]) -> bool:
    """Whether a file's header says so."""
    try:
        return bool(json.loads(metadata["convert_nvfp4"])["options"]["activation_stats"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def check_against(
    source: Model, model: Model, layers: dict[str, StoredLayer], quiet: bool
) -> tuple[list[Finding], dict[str, Damage]]:
    """Every tensor of the source against what the file decodes to, and each layer's error."""
    stored = {bare(name): ref for name, ref in model.tensors.items()}
    found, damage, aware = [], {}, was_rounded_by_statistics(model.metadata)
    limit = ROUNDED_WRONG_FROM if aware else WRONG_FROM
    cpu = torch.device("cpu")
    with single_threaded() as threads, Compute(cpu, threads=threads) as compute:
        for ref in progress_bar("decoding", source.tensors.values(), quiet=quiet):
            other = stored.pop(bare(ref.name), None)
            if other is None:
                found.append(Finding(defect="missing", name=ref.name))
                continue
            error, detail = compare_tensor(ref, other, layers.get(other.layer), compute, limit)
            if error is not None:
                damage[other.layer] = error
            if detail:
                layer = other.name.removesuffix(".bias")
                quantised = layer in layers and layers[layer].format
                moved = aware and quantised and layer != other.name
                defect = "moved bias" if moved and load(other).isfinite().all() else "values"
                found.append(Finding(defect=defect, name=other.layer, detail=detail))
    parts = {*layer_parts(), *marker_names()} - {"weight", "bias"}
    extra = (ref.name for name, ref in stored.items() if name.rpartition(".")[2] not in parts)
    return [*found, *(Finding(defect="extra", name=name) for name in extra)], damage


def verify_file(task: Verification) -> Check:
    """Lint a file and, with a source, decode every tensor and measure it against that.

    Raises ConvertError where either cannot be read or they are of different models.
    """
    try:
        model = open_model(task.file)
    except DamagedFileError as error:
        problems = (f"{problem}; ComfyUI stops while loading it" for problem in error.problems)
        raise ConvertError(*problems) from error
    layers = stored_layers(model)
    found, damage = [*lint(model, layers), *lint_file(model)], {}
    if task.source is not None:
        source, _ = open_source(task.source)
        source, _ = merge_loras(task.merge_lora, source, partial=task.lora_partial)
        if not {*map(bare, model.tensors)} & {*map(bare, source.tensors)}:
            what, file = f"no tensor is in {task.file}", task.file.name
            raise of_another_model(
                task.source, what, it_has=source.tensors, other_has=model.tensors, other=file
            )
        more, damage = check_against(source, model, layers, task.quiet)
        found += more
    return Check(model=model, layers=layers, findings=tuple(found), damage=damage)
