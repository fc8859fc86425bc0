"""A model that is given where a text belongs is told as one."""

import pytest
import torch
from make_wan import write_gguf
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.gguf import open_gguf
from nvfp4.guides.layer_config import read_layer_list
from nvfp4.logs.reading import read_log
from nvfp4.read.json_files import load_json


@pytest.fixture(params=["m.safetensors", "m.gguf"])
def model(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".gguf":
        write_gguf(path, {"a.weight": (32, 32)})
    else:
        save_file({"a.weight": torch.ones(32, 32)}, path)
    return path


@pytest.mark.parametrize(
    "read",
    [read_layer_list, lambda path: load_json(path, "layer config"),
     lambda path: read_log(path, None, {})],
    ids=["list", "config", "log"],
)  # fmt: skip
def test_a_model_is_no_text(model, read):
    with pytest.raises(ConvertError, match=r"m\.\w+: is a \w+( file)?, and no text; give another"):
        read(model)


def test_a_folder_is_no_gguf(tmp_path):
    with pytest.raises(ConvertError, match=r"is a folder; give the \.gguf file in it"):
        open_gguf(tmp_path)
