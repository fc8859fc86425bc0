"""Choose formats by options: the least one, that of 8 bits, and what sensitive layers become.

Rules ask here which row they mean, so that `--formats`, `--card`, `--recipe`, `--use-int8` and
`--sensitive-as` are read in one place.
"""

from __future__ import annotations

import dataclasses

from nvfp4.families import EIGHT_BITS
from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.model import Model
from nvfp4.options import RECIPES, UNQUANTISED, Options
from nvfp4.plan.records import UNNAMED, TensorPlan, plan_tensor
from nvfp4.reasons import Reason, Why


def format_called(word: str) -> Format:
    """Find the row of a word of the command line. Raises KeyError where there is none."""
    return {row.option: row for row in Format.rows if row.option}[word]


def first_allowed(options: Options, words: tuple[str, ...]) -> Format:
    """Return the format of the first word that may be chosen; 16-bit where none may."""
    word = next((word for word in words if word in options.allowed), UNQUANTISED)
    return format_called(word)


def recipe_format(options: Options) -> Format | None:
    """Return the format that the recipe makes of all that would be NVFP4; None for a mix."""
    word = RECIPES[options.recipe].format
    return format_called(word) if word else None


def least_format(options: Options) -> tuple[Format, str]:
    """Return the format of layers that need no more bits, and the option that says so.

    That is the recipe's, or the smallest one that --formats or --card allow.
    """
    if recipe := recipe_format(options):
        return recipe, f"--recipe {options.recipe}"
    return first_allowed(options, options.allowed), allowed_by(options)


def allowed_by(options: Options) -> str:
    """Name the option that says which formats may be chosen."""
    if options.formats or not options.card:
        return f"--formats {','.join(options.allowed)}"
    return f"--card {options.card}"


def eight_bit(options: Options) -> Format:
    """Return the format of layers that are to have 8 bits; 16-bit where none may be chosen."""
    return first_allowed(options, options.eight_bits)


def format_for(options: Options, title: str) -> Format:
    """Return what a table means by a format's title, or by EIGHT_BITS."""
    return eight_bit(options) if title == EIGHT_BITS else format_titled(title)


def held_formats(options: Options, model: Model) -> dict[Format, frozenset[str]]:
    """Find weights that the source has in 8 bits already: {format that may be chosen: weights}.

    Their codes come back as they were in that format, and would be rounded again in another one.
    """
    words = (word for word in options.eight_bits if word in options.allowed)
    rules = [dataclasses.replace(UNNAMED, precision=format_called(word)) for word in words]
    return {
        rule.precision: frozenset(
            ref.name for ref in model.linear_weights if plan_tensor(ref, rule, "").keeps_codes
        )
        for rule in rules
    }


def preset_sensitive(options: Options) -> Format:
    """Return what a layer in NVFP4 becomes that a preset marks; NVFP4 for the mark itself.

    Without --sensitive-as it is multiplied with 8-bit activations, where that may be chosen.
    """
    if options.sensitive_as or not {"w4a8", "int8"} & {*options.allowed}:
        return marked_format(options)
    return first_allowed(options, ("w4a8", "int8"))


def can_be(options: Options, form: Format, shape: tuple[int, ...]) -> bool:
    """Tell whether a weight of this shape can be of a format, or of an allowed one for it."""
    stand_in = form.for_shape(shape)
    return stand_in is form or stand_in.kernel in options.allowed


def fitting(options: Options, form: Format, shape: tuple[int, ...]) -> Format:
    """Return the format, or what weights of this shape become instead, of what may be chosen.

    That is the row that stands in for it, else any other of 8 bits, else 16-bit.
    """
    stand_in = form.for_shape(shape)
    return stand_in if can_be(options, form, shape) else eight_bit(options)


def marked_format(options: Options) -> Format:
    """Return what a marked layer in NVFP4 becomes by --sensitive-as; NVFP4 for the mark itself."""
    word = options.sensitive_as or "w4a16"
    return NVFP4 if word == "w4a16" else format_called(word)


def sensitive_format(options: Options, plan: TensorPlan) -> Format:
    """Return the format of a planned NVFP4 layer that turns out sensitive.

    NVFP4 means that it stays as it is, and is marked for full-precision matmul; so do layers whose
    shape leaves them no other format.
    """
    form, shape = marked_format(options), plan.ref.shape
    return form.for_shape(shape) if can_be(options, form, shape) else NVFP4


def unfit_reason(asked: Format, form: Format) -> Reason:
    """Say that a format does not store a weight's shape, and `form` stands in for it."""
    what = "not rotated" if form.kind == asked.kind else f"no {asked}"
    return Reason(Why.SHAPE, f"{what}: columns % {asked.column_multiple} != 0")


def spared(options: Options, plan: TensorPlan, reason: Reason) -> TensorPlan:
    """Plan a layer in NVFP4 without 4-bit activations, as --sensitive-as says, for this reason."""
    form = sensitive_format(options, plan)
    if form is plan.precision:
        return dataclasses.replace(plan, full_precision=reason)
    asked, reason = marked_format(options), reason.over(plan.reason)
    return dataclasses.replace(
        plan,
        precision=form,
        reason=reason if form is asked else unfit_reason(asked, form).over(reason),
        input_scale=None,
        input_scale_source="",
        saturated_blocks=None,
    )
