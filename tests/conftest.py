"""The tiny Wan-shaped model, and conversions of it that many tests read."""

import pytest
import torch

pytest.register_assert_rewrite("support")

from make_wan import wan_shapes, write_gguf, write_model  # noqa: E402

from support.conversions import convert_tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a sharded tiny Wan (float32, 8 blocks) and model.gguf; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    shapes = wan_shapes("tiny")
    write_model(folder, shapes, torch.float32)
    write_gguf(folder / "model.gguf", shapes)
    return folder


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    """The tiny Wan converted with the documented options."""
    return convert_tiny(tiny, tmp_path_factory.mktemp("out") / "tiny-nvfp4.safetensors")


@pytest.fixture(scope="session")
def converted_amax(tiny, tmp_path_factory):
    """The same, with the block scales that comfy_kitchen chooses."""
    out = tmp_path_factory.mktemp("out") / "tiny-nvfp4-amax.safetensors"
    return convert_tiny(tiny, out, "--use-ck-quant")
