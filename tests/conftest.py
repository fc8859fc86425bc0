"""The tiny Wan-shaped model, and conversions of it that many tests read."""

import os

import pytest

# Threads of torch that wait give their cores away. Without it the tests take several times as long
# where other programs, or other tests, want the cores too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A conversion asks the ComfyUI that COMFYUI_ROOT names, for seconds each: only tests of that do.
if "COMFYUI_ROOT" in os.environ:
    os.environ["TESTED_COMFYUI"] = os.environ.pop("COMFYUI_ROOT")
pytest.register_assert_rewrite("support")

import torch  # noqa: E402
from make_wan import wan_shapes, write_gguf, write_model  # noqa: E402

import convert_nvfp4  # noqa: E402
from nvfp4 import progress  # noqa: E402
from nvfp4.read.checkpoint import open_model  # noqa: E402
from support.activations import correlated  # noqa: E402
from support.conversions import convert_tiny  # noqa: E402
from support.logs import line, log_of  # noqa: E402
from support.recorder import recorder  # noqa: E402

# How slow a machine is must not decide what is on stderr: no phase takes so long that a log gets a
# line of it. The built script has names of its own.
for module in (convert_nvfp4, progress):
    module.SILENCE = 1e6


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


@pytest.fixture(scope="session")
def recording(tiny, tmp_path_factory):
    """A recording with a row for every linear layer of the tiny Wan, by the recorder itself."""
    folder = tmp_path_factory.mktemp("recording")
    made, generator = recorder.Recording(folder, "m"), torch.Generator().manual_seed(5)
    made.begin({}, 256, {})
    for index, ref in enumerate(open_model(tiny).linear_weights):
        x = torch.randn(64, ref.shape[1], generator=generator)
        x[:, 3] *= 1 + index % 20
        made.observe(ref.layer, x)
    made.save()
    return folder / "m.safetensors"


@pytest.fixture(scope="session")
def moments(tiny, tmp_path_factory):
    """A recording with second moments of some layers of the tiny Wan, one of them of zeros."""
    folder = tmp_path_factory.mktemp("moments")
    made = recorder.Recording(folder, "m")
    # Those of the text embedding's 4096 columns would be ten times as large as all others together.
    weights = [ref for ref in open_model(tiny).linear_weights if ref.shape[1] < 4096]
    squared = {ref.layer: ref.shape[1] for ref in weights if "blocks.7" not in ref.layer}
    made.begin({}, 4096, squared)
    for index, ref in enumerate(weights):
        dead = ref.layer == "blocks.3.self_attn.o"
        made.observe(ref.layer, correlated(ref.shape[1], 512, index) * (not dead))
    made.save()
    return folder / "m.safetensors"


@pytest.fixture
def wan_log(tmp_path):
    """Calls of every linear layer in the tiny Wan's blocks, two prompts of four steps."""
    names = [name.removesuffix(".weight") for name, shape in wan_shapes("tiny").items()
             if len(shape) == 2 and name.startswith("blocks.")]  # fmt: skip
    return log_of(
        tmp_path,
        *(line(name, 3 + step + index % 5)
          for _ in range(2) for step in range(4) for index, name in enumerate(names)),
    )  # fmt: skip
