"""--formats and --card: what may be chosen, and what contradicts it."""

import re

import pytest

from nvfp4.cards import CARDS, UNITS
from nvfp4.cli.parse import parse_options
from nvfp4.dtypes import bits_of
from nvfp4.errors import ConvertError
from nvfp4.options import Options
from nvfp4.options.formats import DEFAULT_FORMATS, formats_of_card
from nvfp4.plan.choosing import format_called
from support.paths import ROOT

BASE = {"source": "in.safetensors", "output": "out.safetensors"}


def refused(**values):
    with pytest.raises(ConvertError) as found:
        Options(**BASE | values)
    return found.value.problems


def test_all_formats_but_mxfp8_may_be_chosen_where_nothing_is_said():
    assert Options(**BASE).allowed == DEFAULT_FORMATS
    assert {*DEFAULT_FORMATS} | {"w6a8", "mxfp8"} == {*UNITS}


@pytest.mark.parametrize(
    "given",
    ["fp8,nvfp4,16bit", "NVFP4, 16bit,fp8,fp8", ["16bit", "fp8,nvfp4"], {"16bit", "fp8", "nvfp4"}],
)
def test_formats_are_words_in_any_order(given):
    assert Options(**BASE, formats=given).allowed == ("nvfp4", "fp8", "16bit")
    if isinstance(given, str):
        assert parse_options([*BASE.values(), "--formats", given]).formats == (
            "nvfp4",
            "fp8",
            "16bit",
        )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("int4", "argument --formats: 'int4' is none of nvfp4,w4a8,w6a8,int8,fp8,mxfp8,16bit"),
        ("nvfp", "; did you mean nvfp4?"), ("", "argument --formats: '' is none of "),
        ((), "argument --formats: '' is none of "), ([5], "argument --formats: '5' is none of "),
        (5, "argument --formats: invalid value: 5"),
    ],
)  # fmt: skip
def test_other_words_are_refused_with_those_that_there_are(given, told):
    (problem,) = refused(formats=given)
    assert told in problem


@pytest.mark.parametrize("card", CARDS)
def test_a_card_allows_what_is_fast_there_unless_formats_are_named(card):
    assert Options(**BASE, card=card).allowed == formats_of_card(card)
    assert {*CARDS[card].fast} <= {*UNITS}
    assert Options(**BASE, card=card, formats="nvfp4,fp8").allowed == ("nvfp4", "fp8")
    assert parse_options([*BASE.values(), "--card", card]).card == card


@pytest.mark.parametrize(
    ("recipe", "allowed"),
    [
        ("mixed", DEFAULT_FORMATS), ("fp8", ("fp8", "16bit")), ("scaled-fp8", ("fp8", "16bit")),
        ("int8", ("int8", "16bit")), ("w4a8", ("w4a8", "int8", "16bit")),
    ],
)  # fmt: skip
def test_a_recipe_leaves_what_it_writes(recipe, allowed):
    assert Options(**BASE, recipe=recipe).allowed == allowed
    least = allowed[0]
    assert Options(**BASE, recipe=recipe, formats=f"16bit,{least}").allowed == (least, "16bit")


def test_formats_that_quantise_nothing_are_refused():
    assert refused(formats="16bit") == (
        "--formats leaves nothing to quantise to: name more than 16bit",
    )


def test_formats_and_cards_that_lack_what_is_asked_for_are_refused():
    gguf = {"gguf": "m.gguf", "use_fp8": True}
    assert refused(**gguf, formats="nvfp4,int8") == (
        "--formats contradicts --use-fp8: fp8 is not in nvfp4,int8",
    )
    assert refused(**gguf, card="ampere") == (
        "--card ampere contradicts --use-fp8: fp8 is not in w4a8,int8,16bit; give "
        "--formats to override it",
    )
    assert Options(**BASE, **gguf, card="ampere", formats="nvfp4,fp8")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--recipe int8 --input-scale-value 1", {"recipe": "int8", "input_scale_value": 1}),
        ("--recipe w4a8 --formats int8", {"recipe": "w4a8", "formats": "int8"}),
        ("--card turing --full-precision-mm --recipe mixed",
         {"card": "turing", "full_precision": {"--full-precision-mm"}}),
        ("--formats w4a8,16bit --sensitive-as w4a16",
         {"formats": "w4a8,16bit", "sensitive_as": "w4a16"}),
        ("--gguf g --use-int8 --card rdna --use-fp8 --formats 16bit",
         {"gguf": "g", "use_int8": True, "use_fp8": True, "card": "rdna", "formats": "16bit"}),
    ],
)  # fmt: skip
def test_both_interfaces_refuse_in_the_same_words(words, values, capsys):
    with pytest.raises(SystemExit):
        parse_options([*BASE.values(), *words.split()])
    *_, last = capsys.readouterr().err.splitlines()
    assert last.removeprefix("convert_nvfp4.py: error: ") == refused(**values)[0]


def test_the_table_of_formats_says_what_the_rows_do():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.* \|)$", text, re.MULTILINE))
    assert [*rows] == ["nvfp4", "w4a8", "w6a8", "int8", "fp8", "mxfp8", "16bit"]
    for word, row in rows.items():
        form, cells = format_called(word), [cell.strip() for cell in row.split("|")]
        if form.is_quantised:
            assert cells[0].startswith(form.title)
            assert cells[3] == form.since
            bits = sum(bits_of(*part) for part in form.parts((5120, 5120)).values()) / 5120**2
            assert float(cells[1]) == pytest.approx(bits, abs=0.01)


def test_cards_are_named_by_what_people_call_them():
    (problem,) = refused(card="4070")
    assert "ada = GeForce RTX 40, ampere = GeForce RTX 30, turing = GeForce RTX 20" in problem


def test_turing_has_no_bfloat16():
    assert Options(**BASE, card="turing").dtype == "float16"
    assert Options(**BASE, card="turing", dtype="bfloat16").dtype == "bfloat16"
    assert Options(**BASE, card="ampere").dtype == "bfloat16"
