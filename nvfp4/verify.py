"""Verify a quantised file, with its source or without: --verify.

Without a source it is linted: `stored.lint` names every defect and what ComfyUI does about it. With
one, every tensor is decoded and measured against its original, and a layer that is off is tried in
the other orders that would explain it. `report` makes text and data of the Check.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nvfp4.asking.answers import Answer
from nvfp4.asking.ask import ask_about_file
from nvfp4.asking.find import find_comfyui
from nvfp4.dtypes import SOURCE_FLOATS
from nvfp4.encode.compute import CPU_CHUNK, Compute, single_threaded
from nvfp4.errors import ConvertError, DamagedFileError, of_another_model, printable
from nvfp4.file_kinds import FileKind
from nvfp4.formats.base import Format, layer_parts, marker_names
from nvfp4.model import ATTENTION_CONFIG, Model, TensorRef, bare
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import (
    ROUNDED_TO,
    ROUNDED_WRONG_FROM,
    WRONG_FROM,
    Damage,
    damage_unit,
    measure_damage,
)
from nvfp4.options import Verification
from nvfp4.prefixes import comparable_names, file_kind
from nvfp4.progress import SCREEN, phase, progress_bar
from nvfp4.read.checkpoint import open_model
from nvfp4.read.parts import refuse_lone_shard
from nvfp4.read.tensors import load, load_bytes, load_weight
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source
from nvfp4.stored.defects import Finding, Outcome
from nvfp4.stored.layers import StoredLayer, expert_part, stored_layers, stored_parts, undecodable
from nvfp4.stored.lint import lint_file

# Relative RMSE of a tensor that is not packed: below, it is still much of its original.
NEAR = 0.2
# The share of tensors that differ in a source of another model, and the fewest that tell it.
OTHER_MODEL, FEWEST = 0.9, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Hold what a verification found; `render_check` makes text of it.

    model: the file; kind: what it is instead of a diffusion model, None for one; layers: its layers
    by name; findings: all defects; damage: {layer: error} of the layers that were measured, empty
    without a source; asked: what a ComfyUI answered.
    """

    model: Model
    kind: FileKind | None
    layers: dict[str, StoredLayer]
    findings: tuple[Finding, ...]
    damage: dict[str, Damage]
    asked: Answer | None = None

    @property
    def outcome(self) -> Outcome:
        """Return the worst outcome of all findings, LOADS without any; it is the verdict."""
        return max((finding.outcome for finding in self.findings), default=Outcome.LOADS)


def decoded_damage(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    decode: Callable[..., torch.Tensor],
    compute: Compute,
) -> Damage:
    """Measure a stored layer against its original weight, padding left out.

    original: [N, K] floats; stored: parts by rows and scale, as `Format.unpack` gives them; decode:
    its format's. Returns the damage in plain units, whatever the sizes of scales are.
    """
    parts, scale = stored
    # Measured in units near the original's largest weight: a stored scale may be wrong by any size,
    # and squares in its units would leave float32's range.
    unit = damage_unit(torch.stack(compute.map(largest_magnitude, original)).amax())

    def measure_rows(rows: torch.Tensor, *some: torch.Tensor) -> Damage:
        """Measure some rows in these units."""
        return measure_damage(rows.float() / unit, decode(*some, scale / unit))

    # Rows that pad the stored weight have no original; `measure_damage` drops padded columns.
    trimmed = (part[: len(original)] for part in parts)
    return Damage.total(compute.map(measure_rows, original, *trimmed), unit)


def misread(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    form: Format,
    compute: Compute,
) -> str:
    """Say how a layer that decodes to something else was packed, if another order explains it.

    Arguments as for `decoded_damage`, with the format. An order explains it if the error is one
    that quantising has (below WRONG_FROM). Returns a text for people in any case.
    """
    parts, scale = stored
    others = form.misreadings(parts)
    if not others:
        return "its scale or codes are of another weight"
    for what, other in others.items():
        damage = decoded_damage(original, (other.parts, scale), other.decode, compute)
        if damage.relative_rmse < WRONG_FROM:
            return what
    return "no other order of its codes and scales explains it"


class Compared(NamedTuple):
    """Tell how a stored tensor goes with its original.

    damage: of a quantised layer that was measured. defect: a key of DEFECTS, "" for none; detail:
    how it differs.
    """

    damage: Damage | None = None
    defect: str = ""
    detail: str = ""


def compare_kept(ref: TensorRef, other: TensorRef) -> Compared:
    """Compare a tensor that is not quantised with its original.

    ref: of the source, FP8 decoded and LoRAs merged; other: of the file. Floats may differ by
    rounding (ROUNDED_TO); anything else has to have the same dtype and bytes.
    """
    if not (ref.is_float and other.is_float):
        same = ref.dtype == other.dtype and torch.equal(load_bytes(ref), load_bytes(other))
        told = f"{other.dtype}, the source's is {ref.dtype}"
        return Compared() if same else Compared(defect="values", detail=told)
    chunks = (load_weight(one).flatten().split(CPU_CHUNK) for one in (ref, other))
    size = difference = 0.0
    # Chunks are small because sums are of float64 copies.
    for original, stored in zip(*chunks, strict=True):
        size += float(original.double().square().sum())
        difference += float((stored.double() - original.double()).square().sum())
    if difference <= ROUNDED_TO**2 * size:
        return Compared()
    # NaN, of an original that is all zeros as well, is far.
    error = math.sqrt(difference / (size or math.nan))
    return Compared(None, "near" if error < NEAR else "values", f"relative RMSE {error:.2g}")


def compare_layer(
    ref: TensorRef, layer: StoredLayer, compute: Compute, limit: float = WRONG_FROM
) -> Compared:
    """Measure a quantised layer against its original.

    limit: relative RMSE from which it is wrong. The original is divided by the layer's smoothing,
    as the stored weight is.
    """
    if layer.experts:
        return compare_bank(ref, layer, compute, limit)
    original, stored = load_weight(ref), stored_parts(layer)
    smoothing = layer.parts.get("pre_quant_scale")
    if smoothing and smoothing.dtype in SOURCE_FLOATS and smoothing.shape == ref.shape[1:]:
        # A smoothing of another dtype or shape was found by lint already.
        original = original.float() / load(smoothing).float()
    damage = decoded_damage(original, stored, layer.format.decode, compute)
    # Asked so that NaN is wrong, too.
    if damage.relative_rmse < limit:
        return Compared(damage)
    return Compared(damage, "values", misread(original, stored, layer.format, compute))


def compare_bank(ref: TensorRef, bank: StoredLayer, compute: Compute, limit: float) -> Compared:
    """Measure a bank of experts against its original [E, N, K], one expert after the other."""
    told = [
        compare_layer(expert_part(ref, bank.experts, i), bank.expert(i), compute, limit)
        for i in range(bank.experts)
    ]
    damage = Damage.total((one.damage for one in told), torch.ones(()))
    return next((one._replace(damage=damage) for one in told if one.defect), Compared(damage))


def compare_tensor(
    ref: TensorRef,
    other: TensorRef,
    layer: StoredLayer | None,
    compute: Compute,
    limit: float = WRONG_FROM,
) -> Compared:
    """Compare a stored tensor with its original.

    ref, other: of the source and of the file; layer: what `other` belongs to, None if there is no
    layer of that name.
    """
    # Only a linear weight or embedding whose stored form is known is decoded; all else is compared
    # as it is.
    is_layer = layer is not None and layer.format is not None
    is_bank = is_layer and bool(layer.experts) and ref.is_float and ref.shape == layer.shape
    is_table = ref.is_embedding and is_layer and layer.is_looked_up
    packed = is_bank or is_table or (is_layer and ref.is_linear_weight)
    expected = layer.format.parts(ref.shape)["weight"][1] if packed and not is_bank else ref.shape
    expected = other.shape if is_bank else expected
    if other.shape != expected:
        told = f"{list(other.shape)} for the source's {list(ref.shape)}"
        return Compared(defect="values", detail=told)
    if not packed:
        return compare_kept(ref, other)
    reason = undecodable(layer)
    if reason:
        return Compared(defect="values", detail=f"not measured: {reason}")
    return compare_layer(ref, layer, compute, limit)


def was_rounded_by_statistics(metadata: dict[str, str]) -> bool:
    """Tell whether a file's header says that it was rounded by activation statistics.

    A header that is damaged, or of another program, says nothing of it.
    """
    try:
        return bool(json.loads(metadata["convert_nvfp4"])["options"]["activation_stats"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def check_against(
    source: Model, model: Model, layers: dict[str, StoredLayer], quiet: bool
) -> tuple[list[Finding], dict[str, Damage]]:
    """Compare every tensor of the source with what the file decodes to.

    Names are compared without the prefixes of checkpoints. Returns findings (missing, extra and
    wrong tensors) and {layer: damage}; raises ConvertError where a file cannot be read.
    """
    # Tensors are taken out of `stored` as they are found in the source.
    names = comparable_names(model.files[0], model.tensors)
    stored = {names[name]: ref for name, ref in model.tensors.items()}
    found, damage, aware, kept = [], {}, was_rounded_by_statistics(model.metadata), 0
    limit = ROUNDED_WRONG_FROM if aware else WRONG_FROM
    # Verifying has no --device: it runs on the CPU.
    cpu = torch.device("cpu")
    with single_threaded() as threads, Compute(cpu, threads=threads) as compute:
        for ref in each_tensor(source, quiet):
            other = stored.pop(bare(ref.name), None)
            if other is None:
                found.append(Finding(defect="missing", name=ref.name))
                continue
            told = compare_tensor(ref, other, layers.get(other.layer), compute, limit)
            if told.damage is not None:
                damage[other.layer] = told.damage
            if told.defect:
                # Rounding by statistics moves the bias of a quantised layer on purpose.
                layer = other.name.removesuffix(".bias")
                quantised = layer in layers and layers[layer].format
                moved = aware and quantised and layer != other.name
                moved = moved and load(other).isfinite().all()
                defect = "moved bias" if moved else told.defect
                found.append(Finding(defect=defect, name=other.layer, detail=told.detail))
                kept += defect == "values" and told.damage is None
    # What is left has no original; scales and configurations are what quantising adds.
    parts = {*layer_parts(), *marker_names()} - {"weight", "bias"}
    extra = (
        ref.name
        for name, ref in stored.items()
        if name.rpartition(".")[2] not in parts and not name.endswith(ATTENTION_CONFIG)
    )
    found += [Finding(defect="extra", name=name) for name in extra]
    other = other_source(found, len(source.tensors), kept)
    return ([other], {}) if other else (found, damage)


def each_tensor(source: Model, quiet: bool) -> Iterator[TensorRef]:
    """Yield the tensors of the source; a bar counts their bytes."""
    nbytes = sum(ref.nbytes for ref in source.tensors.values())
    with progress_bar("comparing", nbytes, quiet=quiet) as bar:
        for ref in source.tensors.values():
            bar.at(printable(ref.name))
            yield ref
            bar.update(ref.nbytes)


def other_source(found: list[Finding], count: int, kept: int) -> Finding | None:
    """Tell a source of another model by nearly all of its tensors; None for what may be the one.

    found: how the file differs; count: tensors of the source; kept: how many that are not packed,
    or of another shape, differ. Where only packed layers are off, the packing is wrong.
    """
    counts = Counter(one.defect for one in found)
    lost = min(counts["missing"], counts["extra"])
    differ = counts["values"] + lost
    if differ < OTHER_MODEL * count or count < FEWEST or not (kept or lost):
        return None
    named = f"; {lost:,} of these are not in the file, which has others" if lost else ""
    return Finding(defect="other source", name=f"{differ:,} of {count:,} tensors differ{named}")


@SCREEN
def verify_file(task: Verification) -> Check:
    """Lint a file and, with a source, decode every tensor and measure it against that.

    LoRAs that the task names are merged into the source first. Raises ConvertError where either
    cannot be read or they are of different models. What a ComfyUI finds is among the findings.
    """
    if not isinstance(task, Verification):
        raise ConvertError(f"verify_file takes Verification(file=...), not {task!r}")
    comfyui, source = find_comfyui(task.comfyui), None
    phase("reading headers", quiet=task.quiet)
    refuse_lone_shard(task.file)
    try:
        model = open_model(task.file)
    except DamagedFileError as error:
        problems = (f"{problem}; ComfyUI stops while loading it" for problem in error.problems)
        raise ConvertError(*problems) from error
    # Lint looks at headers and scales alone; no weight is decoded yet.
    layers = stored_layers(model)
    phase("checking", quiet=task.quiet)
    linted, damage = lint_file(model, layers), {}
    found = [*linted]
    # What another program packed cannot be measured, and would only be missed.
    measurable = all(finding.defect != "other program" for finding in found)
    if task.source is not None and measurable:
        # Its weights are what the file was made from, scaled or not.
        source, _ = open_source(task.source, plain_fp8=True)
        if source.quantised and not any(layer.format for layer in layers.values()):
            told = "nothing in it is quantised, but --source is: are the two swapped?"
            raise ConvertError(f"{task.file}: {told} ({task.source})")
        source, _ = merge_loras(task.merge_lora, source, partial=task.lora_partial)
        # One name in common makes it worth comparing: all others are then named as missing.
        names = comparable_names(task.file, model.tensors)
        if not {*names.values()} & {*map(bare, source.tensors)}:
            what, file = f"no tensor is in {task.file}", task.file.name
            raise of_another_model(
                task.source, what, it_has=source.tensors, other_has=model.tensors, other=file
            )
        more, damage = check_against(source, model, layers, task.quiet)
        found += more
    kind = file_kind(task.file, model.tensors)
    if comfyui:
        phase("asking ComfyUI", quiet=task.quiet)
    asked = ask_about_file(comfyui, model, source, kind)
    found += asked.findings_beside(linted) if asked else ()
    return Check(
        model=model, kind=kind, layers=layers, findings=tuple(found), damage=damage, asked=asked
    )
