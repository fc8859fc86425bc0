"""Make comfyui_nvfp4/example_workflows, and the picture of docs/comfyui.md, in ComfyUI's own page.

usage: COMFYUI_ROOT=<checkout> [COMFYUI_FRONTEND=<its static>] python <this file>

Each workflow stands here as nodes in columns. The page opens it, and what the page saves is
written, with a picture of it beside, as the template browser wants them. Run it with the oldest
ComfyUI that the pack is for.
"""

import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TESTS, REPOSITORY = Path(__file__).resolve().parents[1:3]
sys.path[:0] = [str(TESTS), str(REPOSITORY), str(REPOSITORY / "examples")]

import torch  # noqa: E402
from make_wan import wan_shapes, weights  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from support.comfyui_page import Page  # noqa: E402
from support.comfyui_server import Server  # noqa: E402
from support.paths import ROOT  # noqa: E402
from support.workflows import node as core_node  # noqa: E402

FOLDER = ROOT / "comfyui_nvfp4" / "example_workflows"
PICTURE = ROOT / "docs" / "comfyui.png"
# The window: pictures of the template browser are small, and are cut to squares there.
WINDOW = (1500, 900)
# The page without its map, its figures and its buttons over the graph.
BARE = {
    f"Comfy.{name}": False for name in ("Minimap.Visible", "Graph.CanvasInfo", "Graph.CanvasMenu")
}
SMALLER = {"x": 0, "y": 0, "width": WINDOW[0], "height": WINDOW[1], "scale": 0.5}
# Width of a column, as wide as nodes with a summary are, and gaps, in the graph's units.
WIDTH, GAP = 480, 70
TI2V, HIGH, LOW = (
    f"wan2.2_{kind}_fp16.safetensors"
    for kind in ("ti2v_5B", "t2v_high_noise_14B", "t2v_low_noise_14B")
)
SMALL = "wan2.2_ti2v_5B_nvfp4.safetensors"
TINY = "tiny_wan.safetensors"
ENCODER, LORA = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "my_lora.safetensors"
PROMPTS = [
    "a red fox runs through deep snow, close view, morning light",
    "an old fisherman mends a net on a pier, slow camera move to the right",
    "waves break on black rocks below a lighthouse, seen from above, overcast",
    "a street market at night, lanterns, a crowd walks past the camera",
]


@dataclass
class Example:
    """A workflow: a note, and nodes in API form in columns from left to right."""

    name: str
    note: str
    columns: Callable[[Callable], list[dict[str, dict]]]
    # {folder of models: files the workflow names}, made empty so that the page's lists have them.
    files: dict[str, list[str]] = field(default_factory=dict)


def convert_a_model(node: Callable) -> list[dict]:
    made = node("NVFP4Convert", model_file=TI2V)
    loaded = core_node("UNETLoader", unet_name=["1", 0], weight_dtype="default")
    return [{"1": made}, {"2": loaded}]


def shown_in_docs(node: Callable) -> list[dict]:
    return [
        {"1": node("NVFP4Convert", model_file=TINY, name="tiny_wan_nvfp4")},
        {
            "2": core_node("UNETLoader", unet_name=["1", 0], weight_dtype="default"),
            "3": node("NVFP4CheckFile", model_file=["1", 0], source=TINY),
        },
    ]


def convert_this_model(node: Callable) -> list[dict]:
    return [
        {"1": core_node("UNETLoader", unet_name=TI2V, weight_dtype="default")},
        {"2": core_node("LoraLoaderModelOnly", model=["1", 0], lora_name=LORA, strength_model=1.0)},
        {"3": node("NVFP4ConvertModel", model=["2", 0])},
    ]


def check_a_file(node: Callable) -> list[dict]:
    return [{"1": node("NVFP4CheckFile", model_file=SMALL, source=TI2V)}]


def calibrate_and_convert(node: Callable) -> list[dict]:
    return [
        {
            "1": core_node("UNETLoader", unet_name=TI2V, weight_dtype="default"),
            "3": core_node("CLIPLoader", clip_name=ENCODER, type="wan", device="default"),
            "4": core_node(
                "EmptyHunyuanLatentVideo", width=832, height=480, length=49, batch_size=1
            ),
        },
        {"2": core_node("ModelSamplingSD3", model=["1", 0], shift=8.0)},
        {
            "5": node(
                "NVFP4Calibrate", model=["2", 0], clip=["3", 0], latent=["4", 0],
                prompts="\n".join(PROMPTS), steps=20, cfg=5.0, sampler_name="uni_pc",
                scheduler="simple",
            )
        },
        {"6": node("NVFP4Convert", model_file=TI2V, statistics=["5", 0])},
    ]  # fmt: skip


EXAMPLES = [
    Example(
        "Convert a model",
        "## Convert a model\n\nChoose a 16-bit model in **model_file** and press *Run*. The new "
        "file goes to `models/diffusion_models`; the loader takes it at once, in the same run, and "
        "later by its name.\n\n*name*: empty, it is the model's with the format at its end. "
        "*card*: where the model will run. *goal*: quality, speed or in between.",
        convert_a_model,
        {"diffusion_models": [TI2V]},
    ),
    Example(
        "Convert this MODEL with LoRAs",
        "## Convert this MODEL with LoRAs\n\nWhat the link carries is converted: the model with its"
        " LoRAs merged. Put as many LoRA loaders between as you like.",
        convert_this_model,
        {"diffusion_models": [TI2V], "loras": [LORA]},
    ),
    Example(
        "Check a file",
        "## Check a file\n\nNames every defect of a quantised file, whoever made it. With a"
        " **source**, the 16-bit model, it measures every layer's error. *Show report* opens the"
        " page.",
        check_a_file,
        {"diffusion_models": [SMALL, TI2V]},
    ),
    Example(
        "Calibrate and convert (Wan 2.2)",
        "## Calibrate and convert (Wan 2.2)\n\nSamples the prompts, one on each line, while it"
        " records what each layer is given; then converts with these statistics, in one run. Use"
        " prompts of your own, a few dozen, at your usual size and steps.",
        calibrate_and_convert,
        {"diffusion_models": [TI2V], "text_encoders": [ENCODER]},
    ),
]

IN_DOCS = Example("", "", shown_in_docs)

# Place the nodes in columns, each as wide as WIDTH and as high as its widgets need.
ARRANGE = """
(async columns => {
  let x = 0;
  for (const column of columns) {
    let y = 0;
    for (const id of column) {
      const node = app.graph._nodes.find(node => String(node.id) == id);
      const text = node.widgets?.filter(widget => widget.options?.getMinHeight || widget.element);
      node.setSize([%d, node.computeSize()[1] + 90 * (text?.length ?? 0)]);
      node.pos = [x, y];
      y += node.size[1] + %d;
    }
    x += %d;
  }
})
""" % (WIDTH, GAP, WIDTH + GAP)  # noqa: UP031 (braces are JavaScript's)
NOTE = """
(([text, width]) => {
  const note = LiteGraph.createNode("MarkdownNote");
  app.graph.add(note);
  note.widgets[0].value = text;
  note.title = "Note";
  note.setSize([width, 200]);
  note.pos = [0, -270];
})
"""
# Put the graph in the middle, and return the rectangle of it in the window, with a margin.
FRAME = """
(() => {
  const boxes = app.graph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);
  const x = Math.min(...boxes.map(b => b[0])), y = Math.min(...boxes.map(b => b[1]));
  const width = Math.max(...boxes.map(b => b[0] + b[2])) - x + 40;
  const height = Math.max(...boxes.map(b => b[1] + b[3])) - y + 60;
  const ds = app.canvas.ds, scale = Math.min(1.2, innerWidth / width, innerHeight / height);
  ds.scale = scale;
  ds.offset = [innerWidth / 2 / scale - x - width / 2 + 20, innerHeight / 2 / scale - y - height / 2 + 30];
  app.canvas.setDirty(true, true);
  return {x: (innerWidth - width * scale) / 2, y: (innerHeight - height * scale) / 2,
          width: width * scale, height: height * scale};
})()
"""  # noqa: E501


def build(page: Page, example: Example, node: Callable) -> dict:
    """Open an example on the page, lay it out, and return it as the page saves it."""
    columns = example.columns(node)
    workflow = {key: made for column in columns for key, made in column.items()}
    page.clear()
    page.js(f"Promise.resolve(app.loadApiJson({json.dumps(workflow)}, '')).then(() => true)")
    page.wait(f"app.graph._nodes.length == {len(workflow)}")
    page.rest(1)
    page.js(f"{ARRANGE}({json.dumps([list(column) for column in columns])})")
    if example.note:
        page.js(f"{NOTE}({json.dumps([example.note, min(2, len(columns)) * (WIDTH + GAP) - GAP])})")
    page.rest(1)
    return page.saved() | {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"nvfp4/{example.name}"))}


def take_picture(page: Page, path: Path, **how) -> dict:
    """Write the graph in the middle of the page; return the part of the window that it fills."""
    filled = page.js(FRAME)
    page.rest(2)
    page.browser.screenshot(path, **how)
    return filled


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        server = Server(base)
        for example in EXAMPLES:
            for kind, names in example.files.items():
                for name in names:
                    (base / "models" / kind / name).touch()
        try:
            server.wait().post("settings", BARE)
            page = Page(server, base / "profile", WINDOW)
            page.js("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            FOLDER.mkdir(exist_ok=True)
            for example in EXAMPLES:
                saved = build(page, example, server.node)
                text = json.dumps(saved, indent=1, ensure_ascii=False)
                (FOLDER / f"{example.name}.json").write_text(text + "\n", encoding="utf-8")
                take_picture(page, FOLDER / f"{example.name}.jpg", quality=85, clip=SMALLER)
            save_file(dict(weights(wan_shapes("tiny"), torch.bfloat16)), server.model(TINY))
            page.refresh()
            build(page, IN_DOCS, server.node)
            page.js("app.queuePrompt(0, 1).then(() => true)")
            page.wait("document.querySelectorAll('.nvfp4-summary').length == 2", 120)
            page.rest(1)
            page.browser.screenshot(PICTURE, clip=take_picture(page, PICTURE))
            page.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
