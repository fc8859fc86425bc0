"""The name of the file to write, where OUTPUT is a folder or is left out."""

from pathlib import Path

import pytest

from nvfp4.errors import ConvertError
from nvfp4.options import Options
from nvfp4.options.naming import source_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("wan2.2_ti2v_5B_fp16.safetensors", "wan2.2_ti2v_5B"),
        ("a/flux1-dev-BF16.safetensors", "flux1-dev"),
        ("a/x.float32.safetensors", "x"),
        ("qwen_image_fp8_e4m3fn_scaled.safetensors", "qwen_image"),
        ("fp16.safetensors", "fp16"),
        ("model_fp16.safetensors", "model"),
        ("a/wan_bf16.safetensors.index.json", "wan"),
        ("Wan2.2-TI2V-5B/diffusion_pytorch_model.safetensors.index.json", "Wan2.2-TI2V-5B"),
        ("Wan2.2-TI2V-5B/diffusion_pytorch_model.safetensors", "Wan2.2-TI2V-5B"),
        ("my-model-bf16", "my-model"),
        ("Wan2.2-I2V-A14B/low_noise_model", "Wan2.2-I2V-A14B_low_noise"),
        ("Wan-Diffusers/transformer_2/diffusion_pytorch_model.safetensors", "Wan-Diffusers_2"),
        ("Qwen-Image/transformer/model.safetensors.index.json", "Qwen-Image"),
    ],
)
def test_a_name_is_the_sources_without_its_precision(source, name):
    assert source_name(Path(source)) == name


def test_the_folder_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "my-wan").mkdir()
    monkeypatch.chdir(tmp_path / "my-wan")
    assert source_name(Path()) == "my-wan"
    assert Options(source=".").output == tmp_path / "my-wan_nvfp4.safetensors"
    (tmp_path / "my-wan/shards").mkdir()
    monkeypatch.chdir(tmp_path / "my-wan/shards")
    assert Options(source="..").output == tmp_path / "my-wan_nvfp4.safetensors"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "nvfp4"),
        ({"recipe": "int8"}, "int8"),
        ({"recipe": "w4a8"}, "w4a8"),
        ({"recipe": "scaled-fp8"}, "fp8"),
        ({"card": "ada"}, "w4a8"),
        ({"card": "turing"}, "int8"),
        ({"card": "ada", "formats": "fp8,16bit"}, "fp8"),
        ({"gguf": "g.gguf"}, "mixed"),
        ({"target_size": "8GB"}, "mixed"),
        ({"target_ratio": 0.5}, "mixed"),
        ({"layer_config": "c.json"}, "mixed"),
    ],
)
def test_the_last_word_is_what_the_options_ask_for(options, word):
    output = Options(source="a/x_bf16.safetensors", **options).output
    assert output == Path(f"a/x_{word}.safetensors")


def test_a_folder_of_shards_stays_by_itself(tmp_path):
    (tmp_path / "wan/transformer").mkdir(parents=True)
    index = tmp_path / "wan/diffusion_pytorch_model.safetensors.index.json"
    for source in (tmp_path / "wan", index, tmp_path / "wan/transformer/.."):
        assert Options(source=source).output == tmp_path / "wan_nvfp4.safetensors"
    assert Options(source=index, output=tmp_path / "wan").output.parent == tmp_path / "wan"
    # One that has a name of its own may lie among other models.
    lone = Options(source=tmp_path / "models/wan_bf16.safetensors.index.json").output
    assert lone == tmp_path / "models/wan_nvfp4.safetensors"


def test_a_folder_gets_a_made_name_and_a_missing_one_only_on_request(tmp_path):
    source = "x.safetensors"
    assert Options(source=source, output=tmp_path).output == tmp_path / "x_nvfp4.safetensors"
    new = tmp_path / "wan2.2"
    with pytest.raises(ConvertError, match=r"OUTPUT: .*wan2\.2: no such folder; create it"):
        Options(source=source, output=f"{new}/")
    made = Options(source=source, output=f"{new}/", make_folder=True)
    assert made.output == new / "x_nvfp4.safetensors"
    assert not new.exists()


def test_a_misspelt_file_does_not_become_a_folder(tmp_path):
    for name in ("out.safetensor", "out.safetensors.json", "out.gguf", "out.sft"):
        with pytest.raises(ConvertError, match=r"OUTPUT must end in \.safetensors"):
            Options(source="x.safetensors", output=tmp_path / name, make_folder=True)
    for name in ("wan2.2", "v1.fast", "out"):
        Options(source="x.safetensors", output=tmp_path / name, make_folder=True)


def test_a_made_name_never_replaces_a_file(tmp_path):
    taken = tmp_path / "x_nvfp4.safetensors"
    taken.touch()
    given = {"source": tmp_path / "x.safetensors"}
    with pytest.raises(ConvertError, match="exists already; to replace it, give OUTPUT as ") as one:
        Options(**given)
    assert "leave out" not in str(one.value)
    assert Options(**given, dry_run=True).output == taken
    assert Options(**given, output=taken).output == taken
    assert Options(**given, recipe="int8").output == tmp_path / "x_int8.safetensors"
    taken.rename(tmp_path / "x_nvfp4.safetensors.index.json")
    with pytest.raises(ConvertError, match=r"index\.json: exists already"):
        Options(**given, output_sharded=True)
