"""The options table: what its rows say of each other, and what follows from them."""

import dataclasses
import itertools
import re
import subprocess
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

from nvfp4.cli.parse import NOTHING_ASKED, parse_options
from nvfp4.errors import ConvertError
from nvfp4.families import EIGHT_BITS
from nvfp4.formats.base import format_titled
from nvfp4.model import Lora
from nvfp4.options import (
    OPTIONS,
    OTHER_TASKS,
    CalibrationRun,
    CommandLine,
    Options,
    Verification,
    option,
    options_of,
)
from nvfp4.options.header import HEADER_ORDER, portable
from nvfp4.options.kinds import NATURAL, SHARE, SWITCH
from nvfp4.options.table import GENERAL

ROWS = {row.name: row for row in options_of(Options)}
BY_FLAG = {flag: row for row in OPTIONS for flag in row.flags}
BASE = {"source": "in.safetensors", "output": "out.safetensors"}
CALIBRATE = {"--calibrate": __file__, "--prompts": __file__}
OF_CALIBRATION = {row.flag for row in options_of(CalibrationRun)} - {
    flag for row in ROWS.values() for flag in row.flags
}
HOLDERS = [one for row in OPTIONS for one in (row, *row.aliases)]
# A value of each kind that no row has as its default, as text.
VALUES = {
    "FILE": __file__, "FILE[:STRENGTH]": "l.safetensors:0.5", "REGEX": "x", "SIZE": "7GB",
    "SHARE": "0.5", "N": "3", "BITS": "5", "P": "90", "X": "3", "STD": "3", "CV": "3",
    "SCALE": "0.5", "DIR": "ComfyUI", "{auto,cpu,cuda,cuda:N}": "cpu",
    "LIST": "nvfp4,16bit", "RECIPE": __file__, "TEXT": "a text", "WxHxF": "64x64x5",
    "MEMORY": "16GB",
}  # fmt: skip


def relations(name):
    return [(one, other) for one in HOLDERS for other in getattr(one, name)]


def shown(relation):
    return f"{relation[0].flag} {relation[1].flag}"


def words(flag, value=""):
    """Command line words that give an option."""
    kind = next(argument.kind for argument in BY_FLAG[flag].arguments if argument.flag == flag)
    if kind == SWITCH:
        return [flag]
    if BY_FLAG[flag].writes:
        return [flag, "r.md" if flag == "--model-card" else "r.json"]
    choices = [choice for choice in kind.choices if choice != BY_FLAG[flag].default]
    return [flag, value or (choices[0] if choices else VALUES[kind.metavar])]


def field(flag, value=""):
    """{field: value} that give an option in Python."""
    row = BY_FLAG[flag]
    if row.switches:
        return {row.name: {flag}}
    return {row.name: [*words(flag, value), True][1]}


def told(capsys, *arguments):
    """The sentence with which the command line refuses arguments of a task."""
    base = BASE.values()
    if OF_CALIBRATION & {*arguments}:
        # All that a calibration has to be given, but for what is asked about.
        base = [] if arguments[0] in CALIBRATE else [*itertools.chain(*CALIBRATE.items())]
    with pytest.raises(SystemExit) as stop:
        parse_options([*base, *arguments])
    assert stop.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    return last.removeprefix("convert_nvfp4.py: error: ")


def refused(**values):
    """The problems with which Options refuses values."""
    with pytest.raises(ConvertError) as found:
        Options(**BASE | values)
    return found.value.problems


def in_python(flag):
    """Whether a flag is one of a conversion, and no other name of one."""
    return any(flag in (row.switches or [row.flag]) for row in ROWS.values())


# What the rows say


def test_every_field_has_a_row_and_every_row_is_a_field():
    assert [*ROWS] == [entry.name for entry in dataclasses.fields(Options)]
    for task in OTHER_TASKS:
        own = [row.name for row in options_of(task)]
        assert own == [entry.name for entry in dataclasses.fields(task)]
    tasks = (Options, CommandLine, *OTHER_TASKS)
    known = [row.flag for task in tasks for row in options_of(task)]
    assert [row.flag for row in OPTIONS] == [*dict.fromkeys(known)]


def test_flags_are_unique():
    flags = [flag for row in OPTIONS for flag in row.flags]
    assert len(flags) == len({*flags}) == len(BY_FLAG)


@pytest.mark.parametrize("relation", relations("conflicts") + relations("needs"), ids=shown)
def test_relations_name_options_and_values_that_there_are(relation):
    one, other = relation
    assert other.flag in BY_FLAG
    assert other.flag != one.flag
    if other.value:
        row = BY_FLAG[other.flag]
        assert other.value in row.kind.choices
        assert other.value != row.default  # what is not given can be neither needed nor excluded


def test_no_conflict_is_told_twice_and_none_is_a_need():
    told = [({one.flag, other.flag}, other.value) for one, other in relations("conflicts")]
    # An option may exclude several values of another one, but not one of them from both sides.
    assert all(told.count(pair) == 1 for pair in told)
    pairs = {frozenset(flags) for flags, _ in told}
    assert not pairs & {frozenset((a.flag, b.flag)) for a, b in relations("needs")}


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.aliases], ids=lambda row: row.flag)
def test_another_name_conflicts_with_the_name_and_what_that_conflicts_with(row):
    pairs = {frozenset((one.flag, other.flag)) for one, other in relations("conflicts")}
    for alias in row.aliases:
        assert {alias.flag, row.flag} in pairs
        for pair in [pair for pair in pairs if row.flag in pair and alias.flag not in pair]:
            (other,) = pair - {row.flag}
            valued = [o for one, o in relations("conflicts") if {one.flag, o.flag} == pair]
            assert {alias.flag, other} in pairs or valued[0].value


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.flag)
def test_defaults_are_values_of_their_kinds(row):
    if row.default not in (None, MISSING):
        value = row.default if row.switches else row.kind.accept(row.default)
        assert (value, type(value)) == (row.default, type(row.default))


def test_least_precisions_are_titles_of_formats():
    for name in ("minimums", "full_precision"):
        for switch in ROWS[name].switches.values():
            assert switch.least in ("", EIGHT_BITS) or format_titled(switch.least)
            assert bool(switch.least) is (name == "minimums")


def test_the_recorded_order_names_recorded_options():
    assert {*HEADER_ORDER} == {row.name for row in ROWS.values() if row.trace}
    assert len({*HEADER_ORDER}) == len(HEADER_ORDER)


# Both interfaces check the same


def test_nothing_given_is_the_defaults():
    assert parse_options([*BASE.values()]) == Options(**BASE)


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_what_is_given_alone_is_the_same_task_or_the_same_sentence(row, capsys):
    flag = [*row.switches, row.flag][0]
    if not flag.startswith("--"):
        return
    if row.needs:
        assert told(capsys, *words(flag)) in refused(**field(flag))
        return
    beside = {"include": "x"} if row.name == "preset" else {}
    named = ["--include", "x"] if beside else []
    options = Options(**BASE | field(flag) | beside)
    assert parse_options([*BASE.values(), *words(flag), *named]) == options
    assert getattr(options, row.name) != row.default


@pytest.mark.parametrize("relation", relations("conflicts"), ids=shown)
def test_a_contradiction_is_the_same_sentence(relation, capsys):
    one, other = relation
    sentence = f"{one.flag} contradicts {other.text}{other.why}"
    assert told(capsys, *words(one.flag), *words(other.flag, other.value)) == sentence
    if in_python(one.flag) and in_python(other.flag):
        assert sentence in refused(**field(one.flag) | field(other.flag, other.value))


@pytest.mark.parametrize("one", [one for one in HOLDERS if one.needs], ids=lambda one: one.flag)
def test_a_missing_companion_is_the_same_sentence(one, capsys):
    needed = " or ".join(other.text + other.why for other in one.needs)
    sentence = f"{one.flag} needs {needed}"
    assert told(capsys, *words(one.flag)) == sentence
    if in_python(one.flag):
        assert sentence in refused(**field(one.flag))


def test_a_switch_for_one_value_contradicts_what_that_value_does(capsys):
    given = ["--activation-stats", "a", "--pre-quant-scale", "--use-ck-quant"]
    sentence = "--pre-quant-scale contradicts --scale-search amax, which uses no statistics"
    assert told(capsys, *given) == sentence


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--report", "r.txt"), ("--layer-config-out", "c.yaml"), ("--preset", "none"),
        ("--dtype", "int4"), ("--preset", "x"), ("--device", "tpu"), ("--input-scale-value", "-1"),
        ("--input-scale-value", "nan"), ("--input-scale-value", "x"), ("--w4a4-share", "60"),
        ("--input-scale-headroom", "0.5"), ("--edge-blocks", "-1"), ("--target-size", "5XB"),
        ("--merge-lora", "x:0"), ("--include", "("), ("--gguf-nvfp4-max-bitdepth", "4.5"),
        ("--input-scale-summary-percentile", "101"), ("--input-scale-summary-percentile", "nan"),
        ("--input-scale-summary-json", "no.json"), ("--full-precision-mm-layers", "no.txt"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_the_same_sentence(flag, text, capsys):
    plain = told(capsys, flag, text)
    row = BY_FLAG[flag]
    (problem,) = refused(**{row.name: text})
    assert problem == plain
    if re.fullmatch(r"-?[\d.]+|nan", text):
        (problem,) = refused(**{row.name: float(text)})
        assert problem.replace(str(float(text)), text).replace("'", "") == plain.replace("'", "")


def test_the_size_of_shards_and_the_wrong_files_are_told(capsys):
    sentence = "--max-shard-size: 5 bytes are too few; give 5GB or so"
    assert told(capsys, "--output-sharded", "--max-shard-size", "5") == sentence
    assert refused(output_sharded=True, max_shard_size=5) == (sentence,)
    assert refused(source="a.gguf", output="b.gguf") == (
        "SOURCE must be the original .safetensors; a GGUF goes with --gguf",
        "OUTPUT must end in .safetensors, as ComfyUI looks for it, or be a folder: b.gguf",
    )


def test_all_problems_of_a_task_are_lines_of_one_error():
    problems = refused(quiet=True, verbose=True, use_fp8=True, lora_partial=True)
    assert problems == (
        "--quiet contradicts --verbose",
        "--lora-partial needs --merge-lora",
        "--use-fp8 needs --gguf",
    )


@pytest.mark.parametrize(
    "values",
    [
        {"source": None}, {"quiet": "yes"}, {"edge_blocks": True}, {"include": (5,)},
        {"merge_lora": 5}, {"merge_lora": [("x", "y")]}, {"report": 5}, {"device": 0},
        {"recipe": None}, {"minimums": {"--min-x"}}, {"full_precision": ["--min-ffn-fp8"]},
        {"gguf": "g", "gguf_nvfp4_max_bitdepth": 4.5}, {"target_ratio": []}, {"target_size": 1e30},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_other_types_are_refused(values):
    (problem,) = refused(**values)
    assert problem.startswith("argument ")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("presett", "did you mean preset?"), ("Preset", "did you mean preset?"),
        ("SOURCE_", "did you mean source?"), ("input_scale_v", "did you mean input_scale_value?"),
        ("use_ck_quant", "give scale_search"), ("mode", "give preset"),
        ("min_ffn_fp8", 'give minimums={"--min-ffn-fp8"}'), ("xyz", "it has source, output, "),
    ],
)  # fmt: skip
def test_a_name_that_is_no_option_is_told_with_those_that_are(name, told):
    (problem,) = refused(**{name: 1})
    assert problem.startswith(f"Options has no {name}; {told}")


def test_options_are_given_by_name():
    with pytest.raises(
        ConvertError, match=r"^Options takes options by name: Options\(source=...\)$"
    ):
        Options("in.safetensors", "out.safetensors")
    with pytest.raises(ConvertError, match=r"^Options needs source$"):
        Options()
    with pytest.raises(ConvertError, match=r"^Verification has no verify; give file$"):
        Verification(file="f", verify="f")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"preset": "Wan"}, "'none'); did you mean wan?"),
        ({"dtype": "bf16"}, "'float16', 'float32'); did you mean bfloat16?"),
        ({"recipe": "scaled_fp8"}, "; did you mean scaled-fp8?"),
        ({"full_precision": "--full-precision-mm-ffn"}, "mean --full-precision-mm-ffn-up or "),
        ({"include": 5}, "argument --include: 5 is no text"),
        ({"merge_lora": [("x", "y")]}, "argument --merge-lora: 'y' is no number"),
        ({"w4a4_share": True}, "argument --w4a4-share: True is no number"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_told_with_those_that_are_right(values, told):
    (problem,) = refused(**values)
    assert told in problem


def test_verification_is_checked_as_well():
    with pytest.raises(ConvertError, match=r"^--merge-lora needs --source to verify against$"):
        Verification(file="f", merge_lora=("x",))
    with pytest.raises(ConvertError, match=r"^--lora-partial needs --merge-lora$"):
        Verification(file="f", lora_partial=True)
    with pytest.raises(ConvertError, match=r"^argument --verify: None is no path$"):
        Verification(file=None)
    task = Verification(file="f", source="s", merge_lora="x:0.5")
    given = ["--verify", "f", "--source", "s", "--merge-lora", "x:0.5"]
    assert parse_options(given) == task


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.flag)
def test_only_the_fields_of_a_verification_go_with_verify(row, capsys):
    flag = [*row.switches, row.flag][0]
    given = words(flag) if flag.startswith("--") else [VALUES["FILE"]]
    arguments = ["--verify", "f", "--source", "s", "--merge-lora", "l", *given]
    if flag in {row.flag for row in options_of(Verification)}:
        assert isinstance(parse_options(arguments), Verification)
        return
    with pytest.raises(SystemExit) as stop:
        parse_options(arguments)
    assert stop.value.code == 2
    goes = "--source, --merge-lora, --lora-partial, --report, --comfyui, --quiet and --json"
    assert f"--verify FILE goes with {goes}, without OUTPUT" in capsys.readouterr().err


def test_source_is_no_option_of_a_conversion(capsys):
    usual = NOTHING_ASKED
    assert told(capsys, "--source", "x") == usual


def test_a_calibration_is_one_task_in_both_interfaces():
    given = [
        "--calibrate",
        "m",
        "--prompts",
        "p",
        "--comfyui",
        "c",
        "--text-encoder",
        "t",
        "--size",
        "64x32",
        "--image",
        "a",
        "--image",
        "b",
    ]
    needed = {"calibrate": "m", "prompts": "p", "comfyui": "c", "text_encoder": "t"}
    task = CalibrationRun(**needed, size=(64, 32, 1), image=("a", "b"), vae=Path("v"))
    assert parse_options([*given, "--vae", "v", "--size", "64x32"]) == task
    assert task.results == Path("nvfp4_calibration")
    with pytest.raises(ConvertError, match=r"^argument --size: '64' is no size like 832x480x81"):
        CalibrationRun(**needed, size="64")


# What follows from the rows


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.reads or row.writes], ids=lambda row: row.name
)
def test_text_is_welcome_as_a_path_and_the_path_is_listed(row):
    beside = {"sensitivity_threshold": 1.0} if row.name == "sensitivity_json" else {}
    name = words(row.flag)[1] if row.writes else "x.safetensors"
    value = Path(name) if "shipped_path" in str(row.kind.read) else name
    options = Options(**BASE | {row.name: value} | beside)
    assert Path(name) in (options.inputs if row.reads else options.texts)
    others = [Path(BASE["source"])] if row.name != "source" else []
    assert len(options.inputs + options.texts) == 1 + len(others)


def test_one_is_welcome_where_several_are():
    lone = {"include": "a", "merge_lora": "x.safetensors:-2", "activation_stats": Path("s")}
    options = Options(**BASE, **lone)
    assert options.include == ("a",)
    assert options.merge_lora == (Lora(Path("x.safetensors"), -2.0),)
    assert options.activation_stats == (Path("s"),)
    pair = Options(**BASE, merge_lora=[("y.safetensors", 3), Path("z:1")]).merge_lora
    assert pair == (Lora(Path("y.safetensors"), 3.0), Lora(Path("z:1"), 1.0))
    assert Options(**BASE, minimums="--min-ffn-fp8").minimums == {"--min-ffn-fp8"}


def test_what_leaves_a_trace_is_recorded_in_the_order_of_older_headers():
    options = Options(
        source="a/in.safetensors", output="b/out.safetensors", gguf="c/g.gguf", use_fp8=True,
        dtype="float16", merge_lora=("d/l.safetensors:0.5",), minimums={"--min-ffn-fp8"},
        exclude=["x"], device="cpu", quiet=True, low_mem=True, output_sharded=True,
        max_shard_size="1GB",
    )  # fmt: skip
    assert [*options.recorded.items()] == [
        ("gguf", "g.gguf"),
        ("use_fp8", True),
        ("merge_lora", [["l.safetensors", 0.5]]),
        ("exclude", ["x"]),
        ("minimums", ["--min-ffn-fp8"]),
        ("dtype", "float16"),
    ]
    assert portable((Path("a/b"), frozenset("ba"), 1)) == ["b", ["a", "b"], 1]


def test_a_new_option_is_one_row(capsys):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class More(Options):
        crop: int = option(0, GENERAL, NATURAL, "blocks to leave out (default: {default})",
            conflicts=["--edge-blocks"], needs=["--gguf"])  # fmt: skip

    def parsed(*arguments):
        return parse_options([*BASE.values(), *arguments], conversion=More)

    assert parsed().crop == 0
    assert parsed("--gguf", "g", "--crop", "3").recorded["crop"] == 3
    assert More(**BASE, gguf="g", crop="3") == parsed("--gguf", "g", "--crop", "3")
    for arguments, sentence in {
        ("--crop", "3"): "--crop needs --gguf",
        ("--crop", "x"): "argument --crop: 'x' is no whole number of 0 or more",
        ("--crop", "3", "--gguf", "g", "--edge-blocks", "1"): "--crop contradicts --edge-blocks",
        ("--verify", "f", "--crop", "0"): "--verify FILE goes with",
    }.items():
        with pytest.raises(SystemExit):
            parsed(*arguments)
        assert sentence in capsys.readouterr().err
    with pytest.raises(ConvertError, match=r"^--crop needs --gguf$"):
        More(**BASE, crop=3)
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "--crop N blocks to leave out (default: 0)" in " ".join(capsys.readouterr().out.split())


def test_defaults_are_told_as_they_are_written():
    for row in OPTIONS:
        for argument in row.arguments:
            assert "{" not in argument.help
    assert ROWS["max_shard_size"].arguments[0].help.endswith("(default: 5GB)")
    assert (ROWS["target_ratio"].kind, ROWS["max_shard_size"].default) == (SHARE, 5 * 10**9)


def test_options_load_without_torch():
    command = "import sys, nvfp4.options; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", command], cwd=root, check=False).returncode == 0
