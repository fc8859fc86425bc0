"""What people give for a path on the Hub by mistake is answered with the path."""

import pytest

from nvfp4.errors import ConvertError
from nvfp4.hub.address import hub_path_of
from nvfp4.options import Options

SITE = "https://huggingface.co"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (f"{SITE}/o/r", "hf://o/r"),
        (f"{SITE}/o/r/", "hf://o/r"),
        (f"{SITE}/o/r/tree/main", "hf://o/r"),
        (f"{SITE}/o/r/blob/main/a/x%20y.safetensors", "hf://o/r/a/x y.safetensors"),
        (f"{SITE}/o/r/resolve/v1/x.gguf?download=true", "hf://o/r@v1/x.gguf"),
        (f"{SITE}/o/r/tree/refs%2Fpr%2F3/a", "hf://o/r@refs%2Fpr%2F3/a"),
        ("http://hf.co/datasets/o/r/raw/main/x.json#L3", "hf://datasets/o/r/x.json"),
        (f"{SITE}/o/r/discussions/3", ""),
        (f"{SITE}/o/r/blob/main/../../x", ""),
        (f"{SITE}/o", ""),
        ("https://elsewhere.org/o/r", ""),
    ],
)
def test_addresses(address, path):
    assert hub_path_of(address) == path


def test_a_name_without_its_scheme_is_told_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = "SOURCE: no such file o/r; on the Hugging Face Hub, it is hf://o/r"
    with pytest.raises(ConvertError) as refused:
        Options(source="o/r", output="x.safetensors")
    assert str(refused.value) == told
    # The folder is there: a file in it is misspelt.
    (tmp_path / "o").mkdir()
    Options(source="o/r", output="x.safetensors")
