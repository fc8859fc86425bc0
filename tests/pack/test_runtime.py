"""A conversion inside ComfyUI's process: its cancel button, its errors, and whose turn it is."""

from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.paths import ROOT

pytestmark = needs_comfyui

RUN = (
    PREAMBLE
    + f"""
sys.path.insert(0, {str(ROOT)!r})
import threading, time
from pathlib import Path
import comfy.model_management as management
from comfyui_nvfp4 import runtime
from comfyui_nvfp4.converter import converter
from comfyui_nvfp4.runtime import NodeError, converting

torch.inference_mode().__enter__()  # as ComfyUI runs a workflow
out, answers = Path(os.environ["OUT"]), {{}}
threads = torch.get_num_threads()

def convert(program, **more):
    return program.convert(program.Options(
        source=os.environ["MODEL"], output=out, preset="wan", quiet=True, **more))

def outcome(work):
    try:
        with converting("7") as program:
            work(program)
    except BaseException as error:
        return [type(error).__name__, str(error)]

answers["done"] = outcome(convert)
answers["of inference"] = converter().FIRST_ROUNDED_UP.is_inference()
older = out.read_bytes()
bars = []
runtime.comfy.utils.set_progress_bar_global_hook(
    lambda value, total, preview, node_id=None, **_: bars.append((value, total, node_id)))
answers["again"] = outcome(convert)
answers["bars"] = [bars[-1], bars == sorted(bars)]

def cancel(value, total, preview, node_id=None, **_):
    if value > 300:
        management.interrupt_current_processing()
runtime.comfy.utils.set_progress_bar_global_hook(cancel)
answers["cancelled"] = outcome(convert)
answers["left"] = [sorted(path.name for path in out.parent.iterdir()), out.read_bytes() == older]
runtime.comfy.utils.set_progress_bar_global_hook(None)
answers["refused"] = outcome(lambda program: convert(program, target_size="1MB"))

def missing(program):
    raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
answers["missing"] = outcome(missing)

def full(program):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
answers["full"] = outcome(full)

began, ended = [], []
def first():
    with converting(None):
        began.append(1)
        time.sleep(1)
        ended.append(1)
thread = threading.Thread(target=first)
thread.start()
while not began:
    time.sleep(0.01)
answers["second"] = outcome(lambda program: answers.update(waited=len(ended)))
thread.join()
thread = threading.Thread(target=first)
thread.start()
while len(began) < 2:
    time.sleep(0.01)
management.interrupt_current_processing()
answers["cancelled while waiting"] = outcome(convert)
answers["still running"] = len(ended)
thread.join()
answers["threads"] = torch.get_num_threads() == threads
print("RESULT", json.dumps(answers))
"""
)


def test_progress_cancel_errors_and_turns(tiny, tmp_path):
    found, log = run_comfyui(RUN, MODEL=str(tiny), OUT=str(tmp_path / "o.safetensors"))
    assert found["done"] is None
    # Tensors that the program makes when it is loaded may be changed outside of inference mode.
    assert found["of inference"] is False
    assert found["again"] is None
    assert found["bars"] == [[1000, 1000, "7"], True]
    assert found["cancelled"] == ["InterruptProcessingException", ""]
    assert found["left"] == [["o.safetensors"], True]
    name, text = found["refused"]
    assert name == "NodeError"
    assert text.startswith("target_size_gb: 0.001 GB is too little")
    assert "\n" not in text
    name, text = found["missing"]
    assert (name, text.partition(": ")[0]) == ("NodeError", "this needs the Python package gguf")
    assert text.endswith(" -m pip install gguf")
    assert found["full"] == [
        "NodeError", "the card has too little memory for this: choose the device cpu",
    ]  # fmt: skip
    assert found["waited"] == 1
    assert found["cancelled while waiting"] == ["InterruptProcessingException", ""]
    assert found["still running"] == 1
    assert found["threads"]
    # Nothing of the conversion is printed beside what ComfyUI itself logs.
    assert "converting" not in log
