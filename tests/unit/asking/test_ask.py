"""A ComfyUI that cannot be asked, and what is made of answers."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from nvfp4.asking import ask as asking
from nvfp4.asking.answers import Answer, ComfyUI, Taken, Trouble
from nvfp4.asking.ask import answer_of, ask, ask_about_file
from nvfp4.asking.find import INTERPRETERS, VERSION_TEXT, find_comfyui, is_comfyui, version_of
from nvfp4.asking.question import question_of_model
from nvfp4.errors import ConvertError
from nvfp4.file_kinds import LORA, OTHER_NAMES, VAE, FileKind
from nvfp4.prefixes import HALF_ENCODER
from nvfp4.read.checkpoint import open_model
from nvfp4.stored.defects import Finding, Outcome

# A comfy package with all that is imported of it; none of it does anything.
MODULES = {
    "__init__": "", "cli_args": "class args: pass", "quant_ops": "", "sd": "def CLIP(): pass",
    "model_base": "class BaseModel:\n    def __init__(self, device=None): pass",
    "model_detection": "def model_config_from_unet_config(): pass\n"
    "def unet_prefix_from_state_dict(state): return 'model.'",
}  # fmt: skip
NOTHING = {"file": {"metadata": {}, "tensors": {}}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that looks like ComfyUI's."""
    monkeypatch.delenv("COMFYUI_ROOT", raising=False)
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").write_text("", encoding="utf-8")
    (root / "comfyui_version.py").write_text('__version__ = "0.99.1"\n', encoding="utf-8")
    (root / "comfy_kitchen.py").write_text("", encoding="utf-8")
    for name, text in MODULES.items():
        (root / "comfy" / f"{name}.py").write_text(text, encoding="utf-8")
    return root


def problem(folder, files=NOTHING):
    with pytest.raises(ConvertError) as found:
        ask(find_comfyui(folder), files)
    (told,) = found.value.problems
    return told


def test_a_folder_is_found_by_option_or_environment(folder, monkeypatch):
    assert find_comfyui(None) is None
    monkeypatch.setenv("COMFYUI_ROOT", str(folder))
    found = find_comfyui(None)
    assert (found.named_by, found.title) == ("COMFYUI_ROOT", "ComfyUI 0.99.1")
    assert (found.folder, found.python) == (folder.resolve(), Path(sys.executable))
    monkeypatch.setenv("COMFYUI_ROOT", "")
    assert find_comfyui(None) is None
    monkeypatch.setenv("COMFYUI_ROOT", "/nowhere")
    assert find_comfyui(folder).named_by == "--comfyui"
    nowhere = answer_of(find_comfyui(None), NOTHING)
    assert nowhere.sentence.startswith("ComfyUI (COMFYUI_ROOT) was not asked: ")
    assert "nowhere is no ComfyUI folder" in nowhere.sentence
    assert (nowhere.findings, nowhere.problems) == ((), [])
    with pytest.raises(ConvertError, match=r"^--comfyui: .*nowhere is no ComfyUI folder"):
        find_comfyui(Path("/nowhere"))
    # As it is unpacked on Windows, one folder too high.
    with pytest.raises(ConvertError, match=r"^--comfyui: .*; give .*ComfyUI$"):
        find_comfyui(folder.parent)
    (folder / "comfyui_version.py").unlink()
    assert find_comfyui(folder).title == "ComfyUI"


def test_a_folder_is_looked_at_with_care(folder):
    """Anybody may have made it: a name that is none, a version that is a pipe, or has no end."""
    assert not is_comfyui(Path("x" * 5000))
    file = folder / "comfyui_version.py"
    file.write_bytes(b" " * VERSION_TEXT + file.read_bytes())
    assert version_of(folder) == ""
    if hasattr(os, "mkfifo"):
        file.unlink()
        os.mkfifo(file)
        assert version_of(folder) == ""


@pytest.mark.parametrize("place", INTERPRETERS)
def test_its_own_python_runs_it(place, folder):
    python = folder / place
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    assert find_comfyui(folder).python == folder.resolve() / place
    # It is no program, though.
    assert "cannot be started" in problem(folder)


def test_a_module_that_is_missing_is_named(folder):
    (folder / "comfy" / "sd.py").write_text("import no_such_module", encoding="utf-8")
    told = problem(folder)
    assert told.startswith(f"its Python ({sys.executable}) has no module no_such_module; install")
    (folder / "comfy" / "sd.py").unlink()
    assert "has no comfy.sd: it is damaged, or too old" in problem(folder)


@pytest.mark.parametrize("what", ["raise ValueError('no\\nway')", "import sys; sys.exit('no')"])
def test_an_import_that_fails_is_told_in_one_line(what, folder):
    (folder / "comfy" / "sd.py").write_text(what, encoding="utf-8")
    told = problem(folder)
    assert told.startswith(f"cannot be imported by {sys.executable}: ")
    assert "no" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("import os, sys; sys.stderr.write('first\\nlast words'); sys.stderr.flush(); os._exit(3)",
         "its process ended with status 3 and no answer: last words"),
        ("import gc, os\nos.write(3, b'rubbish'); os._exit(0)", "status 0 and no answer"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "and no answer"),
    ],
)  # fmt: skip
def test_a_process_that_dies_or_babbles_is_told(what, told, folder):
    (folder / "comfy" / "sd.py").write_text(what, encoding="utf-8")
    assert told in problem(folder)


def test_a_process_that_hangs_is_ended(folder, monkeypatch):
    monkeypatch.setattr(asking, "LONGEST_ANSWER", 1)
    (folder / "comfy" / "sd.py").write_text("import time; time.sleep(99)", encoding="utf-8")
    assert problem(folder) == "gave no answer within 1 seconds"


def test_what_is_printed_is_no_answer(folder):
    babble = "print('{}', flush=True); import os; os.system('echo []')\ndef CLIP(): pass\n"
    load = "def load_diffusion_model_state_dict(state, metadata): print('more')\n"
    load += "def detect_te_model(state): pass"
    (folder / "comfy" / "sd.py").write_text(babble + load, encoding="utf-8")
    (taken,) = ask(find_comfyui(folder), NOTHING).values()
    assert (taken.recognised, taken.troubles) == ("", ())


@pytest.mark.parametrize(
    "reach",
    [
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_the_network_is_out_of_reach(reach, folder):
    code = f"import socket, urllib.request\n{reach}"
    (folder / "comfy" / "sd.py").write_text(code, encoding="utf-8")
    assert "ComfyUI is asked without network" in problem(folder)


def test_a_comfyui_of_the_environment_does_not_stop_a_conversion(folder, monkeypatch):
    (folder / "comfy" / "sd.py").write_text("import no_such_module", encoding="utf-8")
    with pytest.raises(ConvertError, match=r"^ComfyUI 0\.99\.1: its Python .* no_such_module"):
        answer_of(find_comfyui(folder), NOTHING)
    monkeypatch.setenv("COMFYUI_ROOT", str(folder))
    answer = answer_of(find_comfyui(None), NOTHING)
    assert answer.sentence.startswith("ComfyUI 0.99.1 (COMFYUI_ROOT) was not asked: its Python")
    assert (answer.findings, answer.problems, answer.notes) == ((), [], ())
    assert json.loads(json.dumps(answer.data))["recognised"] is None


def test_the_child_leaves_nothing_in_the_folder(folder):
    before = sorted(folder.rglob("*"))
    problem(folder, {"file": {"metadata": {}, "tensors": {"x": ["F32", ["no"], None]}}})
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("dtype", ["X9", "F8_E4M3FNUZ", "F4"])
def test_a_dtype_that_the_child_does_not_know_leaves_it_unsure(dtype, folder):
    files = {"file": {"metadata": {}, "tensors": {"x": [dtype, [1], None]}}}
    found = answer_of(find_comfyui(folder), files)
    told = f"cannot tell about this file: torch here has no tensors of dtype {dtype}"
    assert found.sentence == f"ComfyUI 0.99.1 {told}"
    assert (found.findings, found.file.tensors) == ((), 1)


def taken(recognised="WAN", troubles=(), unsure="", **configuration):
    configuration = configuration or ({"dim": "1"} if recognised else {})
    rows = tuple(Trouble(*trouble) for trouble in troubles)
    return Taken(
        recognised=recognised,
        configuration=configuration,
        tensors=7,
        left=0,
        troubles=rows,
        unsure=unsure,
        modules={},
    )


def answer(file, source=None):
    comfyui = ComfyUI(folder=Path(), named_by="--comfyui", python=Path(), version="0.33.0")
    return Answer(comfyui=comfyui, file=file, source=source)


def test_a_file_that_is_taken_as_it_should_be():
    assert answer(taken()).sentence == "ComfyUI 0.33.0 recognises WAN, and takes all 7 tensors"
    partly = answer(dataclasses.replace(taken(), left=2))
    assert partly.sentence.endswith("recognises WAN, and takes 5 of 7 tensors")
    both = answer(taken(dim="1"), taken(dim="1"))
    assert both.sentence.endswith("recognises WAN as in the source, and takes all 7 tensors")
    assert (both.findings, both.notes) == ((), ())


def test_what_the_source_has_too_is_no_defect_of_the_output():
    troubles = [("missing", "a", ""), ("unexpected", "b", ""), ("stops", "", "KeyError: 1")]
    same = answer(taken(troubles=troubles), taken(troubles=troubles))
    assert (same.findings, same.problems) == ((), [])
    assert "of the source, too: loading ends with an error" in same.notes[0]
    # Packing is the conversion's own work.
    packed = taken(troubles=[("unpacked", "a", "")])
    assert answer(packed, packed).problems
    assert [f.outcome for f in answer(packed).findings] == [Outcome.WRONG]


def test_a_source_of_wrong_shapes_is_its_own_trouble():
    """16-bit models refuse them; quantised ones take them."""
    before = taken(troubles=[("stops", "a", "[2] for [3]"), ("missing", "b", "")])
    after = taken(troubles=[("shape", "a", "[2] for [3]"), ("missing", "b", "")])
    told = answer(after, before)
    assert (told.problems, told.findings) == ([], ())
    assert told.sentence == "ComfyUI 0.33.0 takes neither the source nor this file as it should"
    assert len(told.notes) == 2
    assert answer(taken(troubles=[("shape", "c", "")]), before).problems


def test_an_output_that_comfyui_does_not_know_is_refused_whatever_its_source_is():
    unknown = answer(taken("", [("stops", "", "x")]), taken("", [("stops", "", "x")]))
    assert "recognises neither the source nor the output" in unknown.problems[0]
    assert [one.outcome for one in unknown.findings] == [Outcome.FAILS]
    assert unknown.sentence == "ComfyUI 0.33.0 does not take this file as it should"
    # A source that could not be asked about says nothing of itself.
    unsure = answer(taken("", [("stops", "", "x")]), taken("", unsure="no values"))
    assert "recognises no diffusion model" in unsure.problems[0]
    lost = answer(taken("", [("stops", "", "KeyError: x")]), taken())
    assert "recognises no diffusion model: the file (KeyError: x)" in lost.problems[0]
    # What is read of it tells more than the error.
    narrow = answer(taken("", [("stops", "", "x")], dim="1"), taken("SDXL", dim="2"))
    assert "the file (SDXL -> no class, dim 2 -> 1)" in narrow.problems[0]


def test_configurations_of_no_known_class_are_compared():
    assert "neither the source nor" in answer(taken("", dim="1"), taken("", dim="1")).problems[0]
    assert "(dim 2 -> 1)" in answer(taken("", dim="1"), taken("", dim="2")).problems[0]


def test_what_needs_values_is_told_as_unsure():
    unsure = answer(taken(troubles=[("stops", "", "x")], unsure="cannot be called on meta tensors"))
    assert (unsure.findings, unsure.problems) == ((), [])
    assert unsure.sentence.endswith("cannot tell about this file: cannot be called on meta tensors")


def test_another_configuration_is_told_field_by_field():
    other = answer(taken("A", dim="1", same="3"), taken("B", dim="2", same="3"))
    assert other.changed == "B -> A, dim 2 -> 1"
    assert other.data["changed"] == other.changed


def test_a_question_has_no_values_of_large_tensors(tiny):
    model = open_model(tiny)
    tensors = question_of_model(model)["tensors"]
    assert tensors.keys() == model.tensors.keys()
    with_values = {name for name, (_, _, values) in tensors.items() if values is not None}
    assert with_values == {name for name, ref in model.tensors.items() if ref.nbytes <= 4096}


def test_other_kinds_of_files_are_not_asked_about(folder, tiny):
    comfyui, model = find_comfyui(folder), open_model(tiny)
    for kind in (LORA, FileKind(*VAE)):
        told = ask_about_file(comfyui, model, None, kind)
        assert told.sentence.endswith(
            f"was not asked: it is asked about diffusion models and text encoders, not {kind.title}"
        )
        assert (told.findings, told.problems) == ((), [])
    for what_to_do in (OTHER_NAMES, HALF_ENCODER):
        assert ask_about_file(comfyui, model, None, FileKind("something", what_to_do)).file


def test_what_lint_has_found_is_told_once():
    told = "ValueError: Missing NVFP4 scales for layer blocks.1.q"
    rows = [("stops", "", told), ("unpacked", "blocks.2.q.weight", "uint8 [4, 4] in Linear")]
    found = answer(taken(troubles=rows))
    assert [one.defect for one in found.findings] == ["asked error", "asked unpacked"]
    assert not any("--exclude" in problem for problem in found.problems)
    lacks = Finding(defect="no scale", name="model.diffusion_model.blocks.1.q")
    bare = Finding(defect="unconfigured", name="blocks.2.q")
    assert [one.defect for one in found.findings_beside([lacks])] == ["asked unpacked"]
    assert found.findings_beside([lacks, bare]) == []
    # Another layer's, and what does less harm, say nothing of it.
    others = [
        Finding(defect="no scale", name="blocks.11.q"),
        dataclasses.replace(bare, defect="one form"),
    ]
    assert found.findings_beside(others) == list(found.findings)
