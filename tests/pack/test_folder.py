"""The folder comfyui_nvfp4: whole by itself, and known to ComfyUI's registry."""

import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
import types

import pytest
from single_file import BUILT, CARRIED

from comfyui_nvfp4 import NODES
from nvfp4.options import __version__
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.paths import ROOT

PACK = ROOT / "comfyui_nvfp4"
OLD = ROOT / "calib" / "comfyui_nvfp4_recorder"
COPY = shutil.ignore_patterns("__pycache__")


def test_it_carries_the_script_and_its_data():
    files = [BUILT, *(file.relative_to(ROOT) for kind in CARRIED for file in ROOT.glob(kind))]
    assert len(files) > 10
    for file in files:
        assert (PACK / file).read_bytes() == (ROOT / file).read_bytes()


def test_a_copy_converts_with_data_found_by_name_and_without_the_package(tiny, tmp_path):
    shutil.copytree(PACK, tmp_path / "comfyui_nvfp4", ignore=COPY)
    code = """
import sys
from comfyui_nvfp4.converter import MODULE, converter
program = converter()
assert program is converter() and program.__name__ == MODULE and "nvfp4" not in sys.modules
seen = []
options = program.Options(
    source=sys.argv[1], output="o.safetensors", quiet=True, partial_guide=True,
    input_scale_summary_json="scales_summary_wan22_5b.json",
    full_precision_mm_layers="sensitive_layers_wan22_5b.txt")
with program.watched_by(seen.append):
    report = program.convert(options)
print(len(report.damage), options.input_scale_summary_json.parent.name, len(seen) > 100)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("40 calib True\n", "")


def test_the_registry_is_told_the_converters_version_and_licence():
    tomllib = pytest.importorskip("tomllib")
    text = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project = text["project"]
    assert project["version"] == __version__
    assert (PACK / project["license"]["file"]).is_file()
    # docs.comfy.org/registry/specifications: no "ComfyUI" in the name, which begins with a letter.
    assert re.fullmatch(r"(?!.*comfyui)[a-z](?:[-_.]?[a-z0-9]){1,98}", project["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    # requirements.txt asks for nothing either.
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project["dependencies"] == [line for line in lines if not line.startswith("#")] == []


def test_without_comfyui_every_other_module_loads():
    code = "import comfyui_nvfp4.recorder, comfyui_nvfp4.workflow, comfyui_nvfp4.converter as c"
    code += "; print(c.converter().__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


def load_old(folder):
    """Load the recorder's old folder as ComfyUI loads a node pack."""
    spec = importlib.util.spec_from_file_location("old_recorder", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_copy_of_the_old_folder_says_what_to_do(tmp_path, caplog):
    copy = shutil.copytree(OLD, tmp_path / "custom_nodes" / OLD.name, ignore=COPY)
    with caplog.at_level(logging.WARNING):
        assert load_old(copy).NODE_CLASS_MAPPINGS == {}
    (record,) = caplog.records
    assert re.search(
        r"copy the folder comfyui_nvfp4 into custom_nodes, and delete \S", record.message
    )


def test_beside_the_pack_by_another_name_the_old_folder_adds_nothing(tmp_path, monkeypatch, caplog):
    known = types.SimpleNamespace(NODE_CLASS_MAPPINGS={"NVFP4CalibrationRecorder": object})
    monkeypatch.setitem(sys.modules, "nodes", known)
    assert (
        load_old(shutil.copytree(OLD, tmp_path / OLD.name, ignore=COPY)).NODE_CLASS_MAPPINGS == {}
    )
    assert caplog.records == []


def test_beside_the_pack_the_old_folder_adds_nothing(tmp_path, caplog):
    copy = shutil.copytree(OLD, tmp_path / OLD.name, ignore=COPY)
    (tmp_path / "comfyui_nvfp4").mkdir()
    assert load_old(copy).NODE_CLASS_MAPPINGS == {}
    assert caplog.records == []


LOAD = (
    PREAMBLE
    + """
import asyncio, inspect, nodes

async def load(folder):
    before = {*nodes.NODE_CLASS_MAPPINGS}
    assert await nodes.load_custom_node(folder)
    return {name: nodes.NODE_CLASS_MAPPINGS[name].GET_NODE_INFO_V1()
            for name in nodes.NODE_CLASS_MAPPINGS if name not in before}

found = asyncio.run(load(os.environ["PACK"]))
print("RESULT", json.dumps(found))
"""
)


@needs_comfyui
def test_comfyui_loads_every_node_with_words_for_everything():
    found, _ = run_comfyui(LOAD, PACK=str(PACK))
    assert {*found} == {name for names in NODES.values() for name in names}
    for name, node in found.items():
        assert all(node[part] for part in ("display_name", "description", "search_aliases")), name
        assert node["category"] == "advanced/quantization"
        for kind in ("required", "optional"):
            for given, (_, facts) in node["input"].get(kind, {}).items():
                assert facts.get("tooltip"), (name, given)


TOO_OLD = (
    PREAMBLE
    + """
import asyncio, importlib.util, nodes
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: (
    None if name == "comfy.quant_ops" else known(name, *package))
print("RESULT", json.dumps(asyncio.run(nodes.load_custom_node(os.environ["PACK"]))))
"""
)


@needs_comfyui
def test_too_old_a_comfyui_is_told_what_the_nodes_need():
    is_loaded, log = run_comfyui(TOO_OLD, PACK=str(PACK))
    assert not is_loaded
    assert "the NVFP4 nodes need ComfyUI 0.29 or newer; update ComfyUI\n" in log
    assert "Traceback" not in log


PAGES = (
    PREAMBLE
    + f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path, PureWindowsPath
import folder_paths
folder_paths.set_output_directory(os.environ["FOLDER"])
from aiohttp import web
from comfyui_nvfp4 import pages
class Server: routes = web.RouteTableDef()
pages.serve_pages(Server)
pages.serve_pages(Server)
pages.page_file("x.html").write_text("x")
names = ["x.html", "D:x.html", "y.html", "../x.html", "x.html:y.html"]
(Path(os.environ["FOLDER"]) / "nvfp4_reports" / "D:x.html").write_text("x")
print("RESULT", json.dumps([len(Server.routes), [bool(pages.find_page(name)) for name in names]]))
"""
)


@needs_comfyui
def test_pages_are_served_once_and_those_of_their_folder_alone(tmp_path):
    (routes, found), _ = run_comfyui(PAGES, FOLDER=str(tmp_path))
    assert routes == 1
    assert found == [True, False, False, False, False]


@needs_comfyui
def test_a_linked_old_folder_still_brings_the_recorder(tmp_path):
    link = tmp_path / OLD.name
    link.symlink_to(OLD)
    found, _ = run_comfyui(LOAD, PACK=str(link))
    assert [*found] == ["NVFP4CalibrationRecorder"]
    inputs = found["NVFP4CalibrationRecorder"]["input_order"]["required"]
    assert inputs == [
        "model", "enabled", "name", "folder", "layers", "tokens", "second_moments", "widest",
    ]  # fmt: skip
    assert json.dumps(found)
