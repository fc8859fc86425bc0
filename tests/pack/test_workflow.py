"""What a workflow tells of a MODEL: the LoRAs that it went through."""

from comfyui_nvfp4.workflow import loras_behind

CHAIN = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan.safetensors"}},
    "2": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "a/first.safetensors", "strength_model": 0.5},
    },
    "3": {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["2", 0], "clip": ["9", 0], "lora_name": "b\\second.safetensors",
            "strength_model": 1, "strength_clip": 0.3,
        },
    },
    "4": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["3", 0], "lora_name": "idle.safetensors", "strength_model": 0},
    },
    "5": {"class_type": "NVFP4ConvertModel", "inputs": {"model": ["4", 0]}},
}  # fmt: skip


def test_loras_are_told_in_the_order_in_which_they_are_merged():
    assert loras_behind(CHAIN, "5") == [("first.safetensors", 0.5), ("second.safetensors", 1)]
    assert loras_behind(CHAIN, "2") == [("first.safetensors", 0.5)]
    assert loras_behind(CHAIN, "1") == loras_behind(CHAIN, "77") == loras_behind({}, "5") == []


def test_a_node_of_several_loras_tells_those_that_are_on():
    stack = {
        "model": ["1", 0],
        "lora_1": {"on": True, "lora": "x.safetensors", "strength": 0.7},
        "lora_2": {"on": False, "lora": "y.safetensors", "strength": 1.0},
        "lora_3": {"on": True, "lora": "z.safetensors", "strength": -1.0},
        "more": {"type": "header"},
    }
    prompt = CHAIN | {"2": {"class_type": "Power Lora Loader", "inputs": stack}}
    assert loras_behind(prompt, "2") == [("x.safetensors", 0.7), ("z.safetensors", -1.0)]


def test_merged_models_are_told_by_their_node():
    merge = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["2", 0], "model2": ["1", 0]}}
    prompt = CHAIN | {"6": merge}
    assert loras_behind(prompt, "6") == [("first.safetensors", 0.5), ("ModelMergeSimple", 1.0)]


def test_a_workflow_in_a_circle_ends():
    assert loras_behind({"3": {"inputs": {"model": ["3", 0]}}}, "3") == []
