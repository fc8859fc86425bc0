"""Read the command line: a parser, its checks, and the task that is asked for."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from nvfp4.cli.description import DESCRIPTION, render_presets
from nvfp4.cli.table import COMMAND_LINE, CONFLICTS, LEAST_SHARD, MODES, REPORT_KINDS, REQUIRES
from nvfp4.cli.types import input_path
from nvfp4.options import DEFAULTS, MINIMUM_OPTIONS, Options, Verification, __version__


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_nvfp4.py",
        usage="%(prog)s SOURCE OUTPUT [options]\n       %(prog)s --verify FILE [--source SOURCE]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # else an option added later changes what a script's short form means
    )
    source = "*.safetensors.index.json, the folder it is in, or one .safetensors"
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=input_path, help=source)
    output = "the .safetensors file to write"
    parser.add_argument("output", metavar="OUTPUT", nargs="?", type=input_path, help=output)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    presets = {"action": "version", "version": render_presets()}
    parser.add_argument("--list-presets", **presets, help="what each preset does, and why")
    for title, options in COMMAND_LINE.items():
        group = parser.add_argument_group(title)
        for option, (keywords, text) in options.items():
            group.add_argument(option, **keywords, help=text)
    return parser


def wrong_files(given: dict[str, object]) -> Iterator[str]:
    if given["source"].suffix.lower() == ".gguf":
        yield "SOURCE must be the original .safetensors; a GGUF goes with --gguf"
    if given["preset"] == "none" and not given["include"]:
        yield "--preset none quantises what --include REGEX names: give that"
    if given["output"].suffix.lower() != ".safetensors":
        yield f"OUTPUT must end in .safetensors, as ComfyUI looks for it: {given['output']}"
    if given["report"] and given["report"].suffix.lower() not in REPORT_KINDS:
        yield f"--report must end in {' or '.join(REPORT_KINDS)}: {given['report']}"
    config = given["layer_config_out"]
    if config and config.suffix.lower() != ".json":
        yield f"--layer-config-out must end in .json: {config}"


def contradictions(given: dict[str, object]) -> Iterator[str]:
    """Options that exclude each other, or that do nothing without another."""

    def flag(name: str) -> str:
        return "--" + name.replace("_", "-")

    def is_given(name: str) -> bool:
        return given[name] is not None and given[name] is not False and given[name] != []

    for one, other in CONFLICTS:
        if is_given(one) and is_given(other):
            yield f"{flag(one)} contradicts {flag(other)}"
    for option, *needed in REQUIRES:
        if is_given(option) and not any(map(is_given, needed)):
            yield f"{flag(option)} needs {' or '.join(map(flag, needed))}"
    if is_given("max_shard_size") and given["max_shard_size"] < LEAST_SHARD:
        yield f"--max-shard-size: {given['max_shard_size']:,} bytes are too few; give 5GB or so"
    if is_given("input_scale_headroom") and given["input_scale_policy"] != "headroom":
        yield "--input-scale-headroom needs --input-scale-policy headroom"


def unused_statistics(given: dict[str, object]) -> Iterator[str]:
    amax = given["use_ck_quant"] or given["scale_search"] == "amax"
    options = {"--w4a4-share": given["w4a4_share"], "--pre-quant-scale": given["pre_quant_scale"]}
    for option, value in options.items():
        if amax and value:
            yield f"{option} contradicts --scale-search amax, which uses no statistics"


def parse_verification(parser: argparse.ArgumentParser, given: dict) -> Verification:
    """--verify and what goes with it; any other option exits with 2."""
    task = ("verify", "original", "quiet", "merge_lora", "lora_partial")
    if any(value != parser.get_default(name) for name, value in given.items() if name not in task):
        parser.error("--verify FILE goes with --source, --merge-lora and --quiet, without OUTPUT")
    if given["merge_lora"] and not given["original"]:
        parser.error("--merge-lora needs --source to verify against")
    return Verification(
        file=given["verify"],
        source=given["original"],
        merge_lora=tuple(given["merge_lora"]),
        lora_partial=given["lora_partial"],
        quiet=given["quiet"],
    )


def parse_options(argv: list[str] | None = None) -> Options | Verification:
    """Command line to a task; a contradiction or a missing companion option exits with 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    if given["verify"] is not None:
        return parse_verification(parser, given)
    if given["output"] is None or given.pop("original") is not None:
        parser.error("give SOURCE and OUTPUT, or --verify FILE [--source SOURCE]")
    given.pop("verify")
    checks = (contradictions(given), unused_statistics(given), wrong_files(given))
    for problem in itertools.chain(*checks):
        parser.error(problem)
    if given.pop("use_ck_quant"):
        given["scale_search"] = "amax"
    given["preset"] = MODES.get(given.pop("mode"), given["preset"])
    given |= {name: value for name, value in DEFAULTS.items() if given[name] is None}
    minimums = [name for name in MINIMUM_OPTIONS if given.pop(name[2:].replace("-", "_"))]
    return Options(
        **given
        | {
            "activation_stats": tuple(given["activation_stats"]),
            "merge_lora": tuple(given["merge_lora"]),
            "include": tuple(given["include"]),
            "exclude": tuple(given["exclude"]),
            "full_precision_mm_pattern": tuple(given["full_precision_mm_pattern"]),
            "full_precision": frozenset(given["full_precision"] or ()),
            "minimums": frozenset(minimums),
        }
    )
