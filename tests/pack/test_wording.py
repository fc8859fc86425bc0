"""What the converter says to who types a command line, in the words of a node."""

import json

import pytest

import convert_nvfp4
from comfyui_nvfp4.wording import Words, error_on_node

INPUTS = {"goal", "recipe_file", "gguf", "formats", "target_size_gb", "statistics", "loras"}
SAID = {
    "--target-size: 1.00 MB (1,000,000 bytes) is too little: the smallest that this plan allows is "
    "11.29 MB (11,287,542 bytes); the least to ask for is --target-size 6.03MB --edge-blocks 0": (
        "target_size_gb: 0.001 GB is too little: the smallest that this plan allows is 0.012 GB; "
        "the least to ask for is target_size_gb 0.007 --edge-blocks 0 (--edge-blocks: in "
        "more_options)"
    ),
    "--target-size: 5000.00 GB (5,000,000,000,000 bytes) leaves nothing to choose; give less": (
        "target_size_gb: 5000 GB leaves nothing to choose; give less"
    ),
    "a.safetensors: is a LoRA: give the model, and this with --merge-lora": (
        "a.safetensors: is a LoRA: choose its model, this in Merge LoRA (NVFP4)"
    ),
    "--recipe-file contradicts --formats": "recipe_file contradicts formats",
    "give fewer --edge-blocks, or name layers with --include": (
        "give fewer --edge-blocks, or name layers with --include (--edge-blocks and --include: in "
        "more_options)"
    ),
    "more_options: --report is not for nodes": "more_options: --report is not for nodes",
}


@pytest.mark.parametrize(("said", "expected"), SAID.items())
def test_errors_name_inputs(said, expected):
    assert error_on_node(convert_nvfp4, said, INPUTS) == expected


def test_a_summary_names_no_folder_that_the_file_is_in():
    there, elsewhere = Words("diffusion_models", INPUTS), Words("checkpoints", INPUTS)
    text = "ComfyUI   into models/diffusion_models; node Load\n          Diffusion Model"
    assert there.summary(text) == "ComfyUI   node Load\n          Diffusion Model"
    assert elsewhere.summary(text) == text


def test_a_report_names_the_file_in_lists_and_no_document():
    data = {
        "comfyui": None,
        "load": {"text": "into models/diffusion_models; node Load Diffusion Model"},
        "notes": [{"rank": "hint", "text": "calibration would store it (docs/calibration.md)"}],
    }
    told = Words("diffusion_models", INPUTS).report(data, "sub/mine.safetensors")
    assert told["comfyui"]["answer"] == "In its lists: sub/mine.safetensors"
    assert told["load"]["text"] == "node Load Diffusion Model"
    assert "docs/" not in json.dumps(told)
