"""Sources that are conversions already, and arguments that are swapped."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.options import Options, Verification
from nvfp4.read.origin import origin_text
from nvfp4.verify import verify_file

MADE = "made by convert_nvfp4 0.1.0 of m.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """m.safetensors, an original, and a conversion of it by each recipe."""
    folder = tmp_path_factory.mktemp("models")
    weights = {f"blocks.{i}.q.weight": torch.randn(128, 128).bfloat16() for i in range(4)}
    weights |= {f"blocks.{i}.down.weight": torch.randn(128, 128).bfloat16() for i in range(4)}
    save_file(weights, folder / "m.safetensors", {"format": "pt"})
    for name, chosen in {
        "mixed": {"exclude": r"\.[12]\."}, "fp8": {"recipe": "fp8"}, "all": {},
        "scaled": {"recipe": "scaled-fp8", "dtype": "bfloat16"},
    }.items():  # fmt: skip
        convert(task(folder, "m", name, **chosen))
    return folder


def task(folder, source, output, **chosen):
    places = {
        "source": folder / f"{source}.safetensors",
        "output": folder / f"{output}.safetensors",
    }
    return Options(**places, **{"preset": "all", "quiet": True} | chosen)


@pytest.mark.parametrize(
    ("source", "chosen", "told"),
    [
        ("fp8", {"recipe": "fp8"}, f"({MADE} (--preset all, --recipe fp8), 8 FP8 layers)"),
        ("fp8", {"recipe": "fp8", "exclude": "down"}, ", and nothing in it would get smaller"),
        ("fp8", {"target_size": 10**6}, "becomes "),
        ("scaled", {"recipe": "scaled-fp8", "dtype": "bfloat16"}, "8 scaled FP8 layers)"),
        ("scaled", {"recipe": "scaled-fp8"}, "8 scaled FP8 layers), and nothing in it"),
        ("all", {}, "nothing is left to quantise: give the original 16- or 32-bit model\n"),
        ("mixed", {"exclude": r"\.[12]\."}, "nothing is left to quantise: give the original 16-"),
    ],
)
def test_a_conversion_in_which_nothing_gets_smaller_is_refused(folder, source, chosen, told):
    for dry_run in (False, True):
        with pytest.raises(ConvertError) as found:
            convert(task(folder, source, "again", **chosen, dry_run=dry_run))
        assert told in f"{found.value}\n"
    assert not (folder / "again.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        ("mixed", {}),
        ("fp8", {}),
        ("scaled", {}),
        ("scaled", {"recipe": "fp8"}),
        ("fp8", {"recipe": "scaled-fp8", "dtype": "bfloat16"}),
        ("fp8", {"recipe": "fp8", "merge_lora": "lora.safetensors"}),
    ],
)
def test_a_conversion_that_gets_smaller_or_other_is_told_apart(folder, source, chosen, monkeypatch):
    monkeypatch.chdir(folder)
    lora = {"diffusion_model.blocks.0.q.lora_A.weight": torch.ones(4, 128),
            "diffusion_model.blocks.0.q.lora_B.weight": torch.ones(128, 4)}  # fmt: skip
    save_file(lora, folder / "lora.safetensors")
    report = convert(task(folder, source, "smaller", **chosen))
    (note,) = (note for note in report.notes if note.startswith("SOURCE is a conversion"))
    assert f"({MADE} (--preset all" in note


def test_the_record_may_be_damaged_and_the_file_of_another_program(folder):
    tensors = load_file(folder / "fp8.safetensors")
    for record in ("", "{", "[]", '{"version": 1}', '{"version": "\u001b", "sources": 1}'):
        save_file(tensors, folder / "damaged.safetensors", {"convert_nvfp4": record})
        with pytest.raises(ConvertError, match=r"is converted already \(8 FP8 layers\), and"):
            convert(task(folder, "damaged", "again", recipe="fp8"))
    text = '{"version": "\x1b[31m", "sources": {"a\\nb": 1}, "options": {"gguf": ["x"]}}'
    assert origin_text({"convert_nvfp4": text.replace("\x1b", "\\u001b")}) == (
        "made by convert_nvfp4 \\x1b[31m of a\\nb (--gguf ['x'])"
    )
    assert len(origin_text({"convert_nvfp4": text.replace("\x1b", "x" * 10**6)})) < 300


def test_swapped_places_are_recognised(folder):
    before = (folder / "m.safetensors").read_bytes()
    with pytest.raises(ConvertError, match=r"but SOURCE is quantised: are they swapped\?"):
        convert(task(folder, "fp8", "m"))
    told = r"new\.safetensors: no such file, but OUTPUT is there and a 16- or 32-bit model: are "
    with pytest.raises(ConvertError, match=told):
        convert(task(folder, "new", "m"))
    check = Verification(file=folder / "m.safetensors", source=folder / "fp8.safetensors")
    with pytest.raises(ConvertError, match=r"m\.safetensors: nothing in it is quantised, but --so"):
        verify_file(check)
    # The output of an earlier run, and what is no model at all, say nothing.
    (folder / "older.safetensors").write_bytes(b"older")
    for output in ("fp8", "older", "missing"):
        with pytest.raises(ConvertError, match=r"new\.safetensors: cannot read: No such file"):
            convert(task(folder, "new", output))
    assert (folder / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize("chosen", [{}, {"dry_run": True}, {"target_ratio": 0.5}])
def test_a_file_of_another_program_is_not_overwritten(folder, chosen):
    """Whoever types two models may take both for sources."""
    for data in ((folder / "m.safetensors").read_bytes(), b"what is this", bytes(9)):
        (folder / "other.safetensors").write_bytes(data)
        with pytest.raises(ConvertError) as found:
            convert(task(folder, "m", "other", **chosen))
        assert str(found.value) == (
            f"{folder / 'other.safetensors'}: is no output of this program, and would be "
            "overwritten; delete it first, or give a folder as the last place to convert several "
            "models"
        )
        assert (folder / "other.safetensors").read_bytes() == data


def test_an_earlier_output_and_an_empty_file_are_replaced(folder):
    earlier = folder / "earlier.safetensors"
    earlier.write_bytes(b"")
    for recipe in ("mixed", "scaled-fp8", "fp8"):
        convert(task(folder, "m", "earlier", recipe=recipe))
    assert earlier.read_bytes() == (folder / "fp8.safetensors").read_bytes()


def test_an_output_that_is_the_source_is_told_so(folder):
    with pytest.raises(ConvertError, match=r"m\.safetensors: is an input of this conversion"):
        convert(task(folder, "m", "m"))


@pytest.mark.parametrize("option", ["report", "layer_config_out"])
@pytest.mark.parametrize(
    "name", ["x.safetensors.index.json", "x.safetensors.index.fp16.json", "config.json"]
)
def test_a_text_does_not_overwrite_a_part_of_a_model(folder, option, name):
    (folder / name).write_text("{}")
    with pytest.raises(ConvertError, match=r"json: is a part of a model, and would be overwritten"):
        convert(task(folder, "m", "new", **{option: folder / name}))
    assert (folder / name).read_text() == "{}"
    (folder / name).unlink()
    convert(task(folder, "m", "new", **{option: folder / name}))
    (folder / name).unlink()


def test_an_output_that_is_a_folder_or_an_index_is_told(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "shards.safetensors.index.json").touch()
    (folder / "models").mkdir(exist_ok=True)
    for source, output, told in (
        ("x.safetensors", "shards.safetensors.index.json", "; are SOURCE and OUTPUT swapped?"),
        ("x.safetensors", ".", "x.safetensors: no such file; are SOURCE and OUTPUT swapped?"),
        ("m.safetensors", "o.sft", "looks for it, or be a folder: o.sft"),
        ("m.safetensors", "wan2.2", "(a file's name would end in .safetensors)"),
        ("m.safetensors", "new/", "(a file's name would end in .safetensors)"),
    ):
        with pytest.raises(ConvertError) as found:
            Options(source=source, output=output)
        assert str(found.value).endswith(told)
