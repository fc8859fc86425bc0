"""What nodes ask the converter for, in a process that has ComfyUI's own modules."""

import json

from nvfp4.options import Options, options_of
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.paths import ROOT

# What an input or `more_options` may say of how a conversion runs.
HOW_TO_COMPUTE = {"--goal", "--device", "--low-mem", "--partial-guide"}
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
from comfyui_nvfp4.settings import RECIPE_FILES, refuse_foreign, settings_inputs, task_of

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
        answers.append(str(error).replace(str(RECIPE_FILES), "RECIPES"))
print("RESULT", json.dumps(answers))
"""
)
# Holds finished tasks to what is for nodes, whatever made them so: a value for each row of the
# options table that is no file by its own inputs.
FINISHED = (
    SETTINGS.partition("answers = []")[0]
    + """
import dataclasses
source, kind = files.find_model("wan_bf16.safetensors")
task = dataclasses.replace(
    task_of(program, source, kind, plain), quiet=False, make_folder=False)
values = {"FILE": base / "x.json", "DIR": base, "FILE[:STRENGTH]": program.Lora(base / "x", 1.0)}
answers = {}
for row in program.options_of(program.Options):
    changed = dataclasses.replace(task)
    value = values.get(row.kind.metavar, True)
    object.__setattr__(changed, row.name, (value,) if row.kind.repeatable else value)
    try:
        refuse_foreign(program, changed, [])
        answers[row.flag] = row.trace
    except NodeError as error:
        answers[row.flag] = str(error).replace(str(base), "BASE")
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
                       "goal contradicts recipe"),
    "a wrong option": (
        "wan_bf16.safetensors",
        {"more_options": "--edge-block 1"},
        "more_options: unrecognized arguments: --edge-block; did you mean --edge-blocks?",
    ),
    "a wrong value": (
        "wan_bf16.safetensors",
        {"more_options": "--edge-blocks x"},
        "more_options: --edge-blocks: 'x' is no whole number of 0 or more",
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
        "wan_bf16.safetensors", {"gguf": "x.gguf"}, "gguf: x.gguf is none of its choices: none",
    ),
    # ComfyUI looks at what is typed on the node alone: all of these may come by a link.
    "a recipe elsewhere": (
        "wan_bf16.safetensors",
        {"recipe_file": "../../../input/evil"},
        "recipe_file: ../../../input/evil is none of its choices: none, wan22-calibrate, "
        "wan22-i2v-14b-high, wan22-i2v-14b-low, wan22-ti2v-5b",
    ),
    "a goal that is none": (
        "wan_bf16.safetensors", {"goal": "x\ny"},
        "goal: 'x\\ny' is none of its choices: balanced, speed, quality",
    ),
    "a card that is none": (
        "wan_bf16.safetensors", {"card": "blackwell"},
        "card: blackwell is none of its choices: this computer's card, any card, GeForce RTX 50 "
        "(Blackwell), GeForce RTX 40 (Ada), GeForce RTX 30 (Ampere), GeForce RTX 20 (Turing), "
        "Radeon RX 9000, 7000 (RDNA)",
    ),
    "a recipe that is none": (
        "wan_bf16.safetensors", {"recipe": ["fp8"]},
        "recipe: ['fp8'] is none of its choices: mixed, fp8, int8, w4a8, scaled-fp8",
    ),
    "a device that is none": (
        "wan_bf16.safetensors", {"device": "cuda:1"},
        "device: cuda:1 is none of its choices: auto, cpu",
    ),
    "a recording that is none": (
        "wan_bf16.safetensors", {"statistics": "../loras/style.safetensors"},
        "statistics: ../loras/style.safetensors is none of its choices: none",
    ),
    "a size that is none": (
        "wan_bf16.safetensors", {"target_size_gb": "1"}, "target_size_gb: 1 is no FLOAT",
    ),
    "a size of NaN": (
        "wan_bf16.safetensors", {"target_size_gb": float("nan")},
        "target_size_gb: nan is not from 0.0 to 1000000.0",
    ),
    "a name that is none": ("wan_bf16.safetensors", {"name": 1}, "name: 1 is no STRING"),
    "a model that is none": (
        ["wan_bf16.safetensors"], {},
        "['wan_bf16.safetensors']: is in none of ComfyUI's folders for models",
    ),
    "a model elsewhere": (
        "../loras/style.safetensors", {},
        "../loras/style.safetensors: is in none of ComfyUI's folders for models",
    ),
    "a LoRA elsewhere": (
        "wan_bf16.safetensors", {"loras": [["../diffusion_models/wan_bf16.safetensors", 1]]},
        "../diffusion_models/wan_bf16.safetensors: is in none of ComfyUI's folders for LoRAs",
    ),
    "LoRAs that are none": (
        "wan_bf16.safetensors", {"loras": "style.safetensors"},
        "loras: style.safetensors is nothing that Merge LoRA (NVFP4) gives",
    ),
    "a LoRA without strength": (
        "wan_bf16.safetensors", {"loras": [["style.safetensors", "1"]]},
        "loras: ['style.safetensors', '1'] is nothing that Merge LoRA (NVFP4) gives",
    ),
    "a device of Windows": (
        "wan_bf16.safetensors", {"name": "wan/Con"},
        "name: 'wan/Con' is no file name; folders may stand before it: wan/small",
    ),
    "a folder that Windows calls otherwise": (
        "wan_bf16.safetensors", {"name": "x. /y"},
        "name: 'x. /y' is no file name; folders may stand before it: wan/small",
    ),
    "going on": (
        "wan_bf16.safetensors",
        {"more_options": "--resume"}, "more_options: --resume is not for nodes: True",
    ),
    "a recipe by an option": (
        "wan_bf16.safetensors", {"more_options": "--recipe-file wan22-calibrate"},
        "more_options: --recipe-file is not for nodes: RECIPES/wan22-calibrate.toml",
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


def test_no_finished_task_writes_or_reads_what_no_input_names(tmp_path):
    (tmp_path / "diffusion_models").mkdir()
    (tmp_path / "diffusion_models" / "wan_bf16.safetensors").write_bytes(b"")
    answers, _ = run_comfyui(FINISHED, FOLDER=str(tmp_path))
    rows = {row.flag: row for row in options_of(Options)}
    assert answers.keys() == rows.keys()
    paths = {flag for flag, row in rows.items() if row.kind.metavar in ("FILE", "DIR")}
    # This list is of the table as it is, to be read by whoever adds an option.
    assert paths == {
        "--report", "--model-card", "--comfyui", "--gguf", "--layer-config", "--layer-config-out",
        "--input-scale-summary-json", "--input-scale-from", "--activation-stats",
        "--sensitivity-json", "--full-precision-mm-layers",
    }  # fmt: skip
    for flag in paths:
        assert answers[flag].startswith(f"{flag} is not for nodes: "), flag
    assert answers["--merge-lora"] == "--merge-lora is not for nodes: BASE/x"
    for flag in ("--resume", "--output-sharded", "--json", "--verbose", "--make-folder"):
        assert answers[flag] == f"{flag} is not for nodes: True"
    taken = {flag for flag, answer in answers.items() if answer is False}
    assert taken == {"SOURCE", "OUTPUT", "--dry-run", *HOW_TO_COMPUTE}
