"""Each guide that does not go with the source says so in one shape, with both sides."""

import json

import gguf
import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.read import read_guides
from nvfp4.guides.records import BIN_EDGES
from nvfp4.model import Model, TensorRef
from nvfp4.options import Options


def model(path):
    ref = TensorRef(
        name="ours.weight", dtype="F32", shape=(32, 64), path=path, begin=0, nbytes=8192
    )
    return Model(tensors={ref.name: ref}, metadata={}, files=(path,))


def rows(path):
    path.write_text(json.dumps({"layers": [{"layer": "theirs", "scale_p99_9": 1, "rel_rmse": 1}]}))


def layers(path):
    path.write_text("theirs\n")


def recording(path):
    figures = {
        "theirs.tokens": torch.ones(1, dtype=torch.int64),
        "theirs.absmax": torch.ones(64),
        "theirs.block_histogram": torch.ones(len(BIN_EDGES), dtype=torch.int64),
        "theirs.quantisation": torch.ones(2, dtype=torch.float64),
    }
    save_file(figures, path, {"format": "nvfp4_recording", "version": "1"})


def scales(path):
    tensors = {"theirs.weight": torch.zeros(4, 4, dtype=torch.uint8)}
    save_file(tensors | {"theirs.input_scale": torch.tensor(0.1)}, path)


def types(path):
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_tensor("theirs.weight", torch.zeros(32, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GUIDES = {
    "gguf": (types, {}),
    "input_scale_summary_json": (rows, {}),
    "input_scale_from": (scales, {}),
    "sensitivity_json": (rows, {"sensitivity_threshold": 0.1}),
    "full_precision_mm_layers": (layers, {}),
    "activation_stats": (recording, {}),
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_of_another_model_shows_both_sides(tmp_path, name):
    make, more = GUIDES[name]
    path = tmp_path / "guide.safetensors" if make in (recording, scales) else tmp_path / "guide"
    make(path)
    named = (path,) if name == "activation_stats" else path
    preset = None if name == "gguf" else "all"
    options = Options(source="in", output="out.safetensors", preset=preset, **{name: named}, **more)
    with pytest.raises(ConvertError) as caught:
        read_guides(options, model(path))
    (problem,) = caught.value.problems
    label = "--activation-stats" if name == "activation_stats" else str(path)
    assert problem.startswith(f"{label}: is of another model: ")
    assert "; it has theirs" in problem
    assert "; the source has ours" in problem
