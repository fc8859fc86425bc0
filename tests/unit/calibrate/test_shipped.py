"""The workflows that come with the program: one for each row, whole, and what options change."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.calibrate.recipes import SAMPLINGS, sampling_of
from nvfp4.calibrate.shipped import Builder, with_options
from nvfp4.calibrate.workflow import links
from nvfp4.errors import ConvertError
from nvfp4.families import FAMILIES
from nvfp4.options.tasks import CalibrationRun
from nvfp4.read.checkpoint import open_model


def task_of(sampling, **given):
    encoders = [f"t{number}.safetensors" for number in range(sampling.encoders)]
    usual = {
        "calibrate": "m.safetensors", "comfyui": "ComfyUI", "prompts": "p.txt",
        "text_encoder": encoders,
    }  # fmt: skip
    if sampling.needs_image:
        usual |= {"vae": "v.safetensors", "image": "i.png"}
    return CalibrationRun(**usual | given)


def workflow_of(key, **given):
    sampling = SAMPLINGS[key]
    task = task_of(sampling, **given)
    return Builder(with_options(sampling, task), task).build()


@pytest.mark.parametrize("key", SAMPLINGS, ids="".join)
def test_every_workflow_is_whole_and_of_a_known_family(key):
    family, variant = key
    assert not variant or variant in FAMILIES[family].variants
    workflow = workflow_of(key)
    for node in workflow.values():
        assert all(origin in workflow for _, origin, _ in links(node))
    reached = {origin for node in workflow.values() for _, origin, _ in links(node)}
    assert workflow.keys() - reached == {"end"}


def test_options_win_over_what_is_usual():
    workflow = workflow_of(("wan", "T2V"), size=(64, 32, 5), steps=3, cfg=2.0, negative="bad")
    assert workflow["latent"]["inputs"] == {"width": 64, "height": 32, "length": 5, "batch_size": 1}
    sampler = workflow["sampler"]["inputs"]
    assert (sampler["steps"], sampler["cfg"], sampler["return_with_leftover_noise"]) == (
        3, 2.0, "disable",
    )  # fmt: skip
    assert workflow["negative"]["inputs"]["text"] == "bad"


def test_two_halves_share_the_steps():
    workflow = workflow_of(("wan", "T2V"), low_noise="low.safetensors")
    high, low = (workflow[name]["inputs"] for name in ("sampler", "low-noise sampler"))
    assert (high["add_noise"], high["end_at_step"], high["return_with_leftover_noise"]) == (
        "enable", 10, "enable",
    )  # fmt: skip
    assert (low["add_noise"], low["start_at_step"], low["latent_image"]) == (
        "disable", 10, ["sampler", 0],
    )  # fmt: skip
    assert low["model"] == ["low noise shifted", 0]


def test_an_image_is_encoded_only_where_one_is_given():
    assert "vae" not in workflow_of(("wan", "TI2V"))
    assert workflow_of(("wan", "TI2V"), vae="v", image="i")["latent"]["class_type"] == (
        "Wan22ImageToVideoLatent"
    )
    sampler = workflow_of(("wan", "I2V"))["sampler"]["inputs"]
    assert [sampler[name] for name in ("positive", "negative", "latent_image")] == [
        ["latent", 0], ["latent", 1], ["latent", 2],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "given", "problem"),
    [
        (("wan", "T2V"), {"text_encoder": ["a", "b"]}, "the model takes 1, not 2"),
        (("flux", "dev"), {"text_encoder": ["a"]}, "the model takes 2, not 1"),
        (("wan", "I2V"), {"image": (), "vae": None}, "give --vae FILE and --image FILE"),
        (("wan", "T2V"), {"image": "i", "vae": "v"}, "--image: the model's workflow takes none"),
        (("flux2", ""), {"low_noise": "l"}, "--low-noise: only Wan 2.2 14B"),
    ],
)
def test_files_that_are_missing_or_of_no_use_are_one_line(key, given, problem):
    with pytest.raises(ConvertError, match=problem):
        workflow_of(key, **given)


def test_a_model_without_a_workflow_is_one_line(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"x.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ConvertError, match="is of no known family, for which no workflow comes"):
        sampling_of(open_model(path))
