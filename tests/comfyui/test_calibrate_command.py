"""Calibration in one command: ComfyUI started, prompts sampled, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvfp4.calibrate.recipes import SAMPLINGS
from nvfp4.calibrate.shipped import Builder, with_options
from nvfp4.calibrate.workflow import samplers_behind
from nvfp4.options.tasks import CalibrationRun
from support.comfyui import COMFYUI
from support.comfyui_server import frontend, needs_server
from support.paths import ROOT
from support.workflows import loader, node, sampling

pytestmark = needs_server
# What is a file's name in a shipped workflow, or put in for each prompt.
FILES = (".safetensors", ".png")


class Command:
    """The command for the small Wan, with a ComfyUI that has the helper nodes."""

    def __init__(self, server, folder: Path):
        self.server, self.folder = server, folder
        self.models = server.base / "models"
        paths = {"test": {"custom_nodes": str(server.base / "custom_nodes")}}
        paths["test"]["text_encoders"] = str(self.models / "text_encoders")
        extra = folder / "extra.yaml"
        extra.write_text(json.dumps(paths), encoding="utf-8")
        words = ["--cpu", f'--extra-model-paths-config "{extra}"']
        words += ["--whitelist-custom-nodes nvfp4_recorder helper_nodes"]
        words += [f'--front-end-root "{frontend()}"'] if frontend() else []
        self.arguments = " ".join(words)
        (folder / "prompts.txt").write_text("a red square\n\ntwo green discs\n", "utf-8")
        self.results = folder / "results"

    def start(self, *words) -> subprocess.Popen:
        command = [
            sys.executable, ROOT / "convert_nvfp4.py",
            "--calibrate", self.models / "diffusion_models" / "wan.safetensors",
            "--comfyui", COMFYUI, "--prompts", self.folder / "prompts.txt",
            "--results", self.results, f"--comfyui-args={self.arguments}", *words,
        ]  # fmt: skip
        pipe, site = subprocess.PIPE, str(self.server.base / "site")
        environment = os.environ | {
            "PYTHONPATH": site, "PYTHONUTF8": "1", "TMPDIR": str(self.folder),
        }  # fmt: skip
        return subprocess.Popen(
            [str(word) for word in command], stdout=pipe, stderr=pipe, text=True, env=environment
        )

    def run(self, *words):
        """Exit status, stdout and stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=280)
        return process.returncode, out, err

    @property
    def encoder(self):
        return ["--text-encoder", self.models / "text_encoders" / "umt5.safetensors"]

    def left(self) -> list[str]:
        """Folders of ComfyUIs, and processes that mention them."""
        found = [str(path) for path in self.folder.glob("nvfp4_calibration_*")]
        for one in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = one.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "main.py" in words and str(self.folder) in words:
                found.append(words.replace("\0", " "))
        return found


@pytest.fixture
def command(server, tmp_path):
    return Command(server, tmp_path)


def test_two_prompts_leave_a_log_a_recording_and_the_next_line(command):
    size = ["--size", "64x64x5", "--steps", "2", "--cfg", "1"]
    status, out, err = command.run(*command.encoder, *size)
    assert status == 0, err
    assert sorted(path.name for path in command.results.iterdir()) == [
        "wan.log", "wan.safetensors",
    ]  # fmt: skip
    assert "2 prompts sampled in " in out
    assert "wan: 86 layers, 4 calls each" in out
    assert out.splitlines()[-1].startswith("next: python convert_nvfp4.py ")
    assert "--activation-stats" in out.splitlines()[-1]
    assert "starting ComfyUI" in err
    assert command.left() == []


def test_the_encoder_is_recorded_beside_the_model_where_asked(command):
    size = ["--size", "64x64x5", "--steps", "1", "--cfg", "1", "--second-moments", "all"]
    status, out, err = command.run(*command.encoder, *size, "--record-encoder")
    assert status == 0, err
    assert {"umt5.log", "umt5.safetensors", "wan.safetensors"} <= {
        path.name for path in command.results.iterdir()
    }  # fmt: skip
    # Two prompts and the negative one, which is encoded once.
    assert "umt5: 7 layers, 3 calls each" in out
    last = out.splitlines()[-1]
    assert last.startswith(f'next: python convert_nvfp4.py "{command.encoder[1]}" --activation-')
    assert last.endswith(f" {command.results / 'umt5.safetensors'}")


def test_an_own_workflow_is_recorded_up_to_its_sampler(command):
    workflow = sampling(loader("elsewhere/wan.safetensors"), steps=1)
    workflow["5"]["inputs"] |= {"width": 64, "height": 64, "length": 5}
    workflow["9"] = node("PreviewAny", source=["6", 0])
    # All nodes are loaded for it: the server's folder has the whole pack, too.
    file = command.folder / "mine.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    status, out, err = command.run("--workflow", file, "--record-encoder")
    assert status == 0, err
    assert "wan: 86 layers, 2 calls each" in out
    assert "umt5: 7 layers, " in out


def test_what_comfyui_refuses_is_one_line_and_its_output_is_kept(command):
    wrong = command.models / "diffusion_models" / "wan.safetensors"
    status, _, err = command.run("--text-encoder", wrong, "--steps", "1", "--size", "64x64x5")
    kept = command.results / "wan.comfyui.txt"
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith("error: ComfyUI: ")
    assert last.endswith(f"; all that ComfyUI printed is in {kept}")
    assert "Traceback" not in err
    assert "got prompt" in kept.read_text(encoding="utf-8", errors="replace")


@pytest.mark.skipif(os.name == "nt", reason="processes are looked for in /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_whatever_ends_it_ends_comfyui_too(command, name):
    process = command.start(*command.encoder, "--steps", "200", "--size", "64x64x5")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "KSampler" in line:
            break
    assert command.left(), lines
    time.sleep(2)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    if name == "SIGINT":
        assert process.returncode == 130
        kept = f"what was recorded so far is in {command.results / 'wan.safetensors'}"
        assert err.splitlines()[-1] == f"interrupted: ComfyUI was ended; {kept}"
        assert command.left() == []
    else:
        time.sleep(3)
        assert not any("main.py" in one for one in command.left())


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("key", SAMPLINGS, ids="".join)
def test_comfyui_knows_every_node_of_the_shipped_workflows(server, key, image):
    usual = SAMPLINGS[key]
    if (image and not usual.image_latent) or (usual.needs_image and not image):
        pytest.skip("made the other way")
    encoders = [f"{number}.safetensors" for number in range(usual.encoders)]
    given = {"calibrate": "m.safetensors", "prompts": "p", "text_encoder": encoders}
    given["comfyui"] = "ComfyUI"
    given |= {"vae": "v.safetensors", "image": "i.png"} if image else {}
    if key == ("wan", "T2V"):
        given["low_noise"] = "l.safetensors"
    task = CalibrationRun(**given)
    workflow = Builder(with_options(usual, task), task).build()
    info = server.get("object_info")
    for told in workflow.values():
        inputs, known = told["inputs"], info[told["class_type"]]["input"]
        every = known.get("required", {}) | known.get("optional", {})
        assert known.get("required", {}).keys() <= inputs.keys() <= every.keys(), told
        for name, value in inputs.items():
            kind, *facts = every[name]
            choices = kind if isinstance(kind, list) else (facts or [{}])[0].get("options")
            if choices is not None and not str(value).endswith(FILES) and value != "":
                assert value in choices, (told, name)
    samplers = samplers_behind(workflow, ["model"], info)
    assert samplers[0] == "sampler"
