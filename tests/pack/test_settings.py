"""What nodes ask the converter for, in a process that has ComfyUI's own modules."""

import json

from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.paths import ROOT

pytestmark = needs_comfyui

SETTINGS = (
    PREAMBLE
    + f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import folder_paths
base = Path(os.environ["FOLDER"])
for kind in ("diffusion_models", "checkpoints", "loras"):
    (base / kind).mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths[kind] = ([str(base / kind)], {{".safetensors"}})
folder_paths.set_output_directory(str(base))

from comfyui_nvfp4 import files
from comfyui_nvfp4.converter import converter
from comfyui_nvfp4.runtime import NodeError
from comfyui_nvfp4.settings import settings_inputs, task_of

program = converter()
plain = {{one.id: getattr(one, "default", None) for one in settings_inputs()}}
plain |= {{one.id: one.options[0] for one in settings_inputs() if hasattr(one, "options")}}
answers = []
for name, changes in json.loads(os.environ["CASES"]):
    try:
        source, kind = files.find_model(name)
        task = task_of(program, source, kind, plain | changes)
        answers.append([str(task.output.relative_to(base).as_posix()), task.goal, task.card,
                        list(task.formats or ()), task.device, task.edge_blocks,
                        [[one.path.name, one.strength] for one in task.merge_lora]])
    except NodeError as error:
        answers.append(str(error))
print("RESULT", json.dumps(answers))
"""
)
PLAIN = ["diffusion_models/wan_nvfp4.safetensors", None, None]
CASES = {
    "nothing chosen": ("wan_bf16.safetensors", {}, None),
    "a goal and a card": (
        "wan_bf16.safetensors",
        {"goal": "quality", "card": "GeForce RTX 40 (Ada)", "name": "my/wan"},
        ["diffusion_models/my/wan.safetensors", "quality", "ada", ["int8", "16bit"], "cpu", None,
         []],
    ),
    "a checkpoint": (
        "checkpoints/all.safetensors",
        {"formats": "int8,16bit", "more_options": "--edge-blocks 1"},
        ["checkpoints/all_int8.safetensors", None, None, ["int8", "16bit"], "cpu", 1, []],
    ),
    "LoRAs": (
        "wan_bf16.safetensors",
        {"loras": [["style.safetensors", 0.5]], "formats": "nvfp4,16bit", "name": "x.safetensors"},
        ["diffusion_models/x.safetensors", None, None, ["nvfp4", "16bit"], "cpu", None,
         [["style.safetensors", 0.5]]],
    ),
    "no such model": (
        "w.safetensors", {}, "w.safetensors: is in none of ComfyUI's folders for models",
    ),
    "out of the folder": (
        "wan_bf16.safetensors",
        {"name": "../x"},
        "name: '../x' is no file name; folders may stand before it: wan/small",
    ),
    "an absolute name": (
        "wan_bf16.safetensors",
        {"name": "/etc/x"},
        "name: '/etc/x' is no file name; folders may stand before it: wan/small",
    ),
    "contradictions": ("wan_bf16.safetensors", {"goal": "quality", "recipe": "int8"},
                       "--goal contradicts --recipe"),
    "a wrong option": (
        "wan_bf16.safetensors",
        {"more_options": "--edge-block 1"},
        "unrecognized arguments: --edge-block; did you mean --edge-blocks?",
    ),
    "a wrong value": (
        "wan_bf16.safetensors",
        {"more_options": "--edge-blocks x"},
        "argument --edge-blocks: 'x' is no whole number of 0 or more",
    ),
    "an option that writes": (
        "wan_bf16.safetensors",
        {"more_options": "--report /tmp/x.html"},
        "more_options: --report is not for nodes: /tmp/x.html",
    ),
    "an option that reads": (
        "wan_bf16.safetensors",
        {"more_options": "--layer-config /etc/passwd"},
        "more_options: --layer-config: only what comes with the converter, by name",
    ),
    "another output": (
        "wan_bf16.safetensors",
        {"more_options": "/tmp/a /tmp/b"},
        "more_options: SOURCE is not for nodes: /tmp/a",
    ),
    "a text": (
        "wan_bf16.safetensors",
        {"more_options": "--help"},
        "more_options: that asks for a text, and for no conversion",
    ),
    "a GGUF that is gone": (
        "wan_bf16.safetensors", {"gguf": "x.gguf"}, "x.gguf: there is no GGUF of this name",
    ),
}  # fmt: skip


def test_inputs_become_options_or_one_line(tmp_path):
    for place in ("diffusion_models/wan_bf16", "checkpoints/all", "loras/style"):
        path = tmp_path / f"{place}.safetensors"
        path.parent.mkdir()
        path.write_bytes(b"")
    asked = json.dumps([[name, changes] for name, changes, _ in CASES.values()])
    answers, _ = run_comfyui(SETTINGS, FOLDER=str(tmp_path), CASES=asked)
    for case, answer, (_, _, expected) in zip(CASES, answers, CASES.values(), strict=True):
        if expected is None:
            # An older ComfyUI has fewer formats.
            assert answer[:3] == PLAIN, case
            assert answer[3] in ([], ["nvfp4", "int8", "fp8", "16bit"]), case
        else:
            assert answer == expected, case
