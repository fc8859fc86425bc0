"""Two copies of the pack in custom_nodes, as the registry's beside one put in by hand."""

import shutil

import pytest

from support.comfyui_server import PACK, Server, needs_server

pytestmark = [needs_server, pytest.mark.slow]
# The recorder's folder as it was when it held the node itself.
OLD_RECORDER = """
class Recorder:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "advanced"
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
NODE_CLASS_MAPPINGS = {"NVFP4CalibrationRecorder": Recorder}
"""


class TwoCopies(Server):
    """A server with the pack twice, and with the old recorder's folder."""

    def start(self):
        nodes = self.base / "custom_nodes"
        shutil.copytree(PACK, nodes / "convert-nvfp4", ignore=shutil.ignore_patterns("__pycache__"))
        old = nodes / "comfyui_nvfp4_recorder"
        old.mkdir()
        (old / "__init__.py").write_text(OLD_RECORDER, encoding="utf-8")
        (old / "recorder.py").write_text("", encoding="utf-8")
        return super().start()


def test_comfyui_starts_with_one_of_two_copies_and_says_which_to_delete(tmp_path):
    made = TwoCopies(tmp_path)
    try:
        made.wait()
        lines = [line for line in made.log.splitlines() if "NVFP4:" in line]
        scripts = [path for path in made.get("extensions") if path.endswith("/nvfp4.js")]
        kinds = made.get("object_info")
    finally:
        made.stop()
    copies = {str(tmp_path / "custom_nodes" / name) for name in ("convert-nvfp4", PACK.name)}
    [told] = [line for line in lines if "has the same nodes" in line]
    assert all(copy in told for copy in copies)
    [old] = [line for line in lines if "recorder is part of this pack now" in line]
    assert old.endswith(f"delete {tmp_path / 'custom_nodes' / 'comfyui_nvfp4_recorder'}")
    assert len(scripts) == 1
    assert {"NVFP4Convert", "NVFP4Calibrate", "NVFP4CalibrationRecorder"} <= kinds.keys()
    # ComfyUI's own nodes may fail for what is not installed here.
    assert not [
        line for line in made.log.splitlines() if "IMPORT FAILED" in line and "custom_" in line
    ]
