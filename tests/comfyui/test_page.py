"""ComfyUI's page in a browser: what a person sees and presses."""

import json

import pytest

from support.comfyui_server import PACK, needs_server

pytestmark = [needs_server, pytest.mark.slow]
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))


@pytest.fixture(autouse=True)
def empty(page):
    page.clear()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("convert model file", "NVFP4Convert"),
        ("quantize", "NVFP4Convert"),
        ("NVFP4ConvertModel", "NVFP4ConvertModel"),
        ("merge lora nvfp4", "NVFP4MergeLora"),
        ("check model file", "NVFP4CheckFile"),
        ("calibrate", "NVFP4Calibrate"),
        ("calibration recorder", "NVFP4CalibrationRecorder"),
    ],
)
def test_nodes_are_found_by_the_search(page, words, found):
    assert found in page.found(words)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_open_from_the_template_browser(page, example):
    page.open_template("comfyui_nvfp4", example.stem)
    saved = json.loads(example.read_text(encoding="utf-8"))
    page.wait(f"app.graph._nodes.length == {len(saved['nodes'])}")
    kinds = page.server.get("object_info")
    for node in page.nodes:
        if node["type"] not in kinds:
            assert node["type"] == "MarkdownNote"
            continue
        # What the page read into its widgets is what was saved, one by one.
        [before] = [one for one in saved["nodes"] if str(one["id"]) == node["id"]]
        assert [*node["widgets"].values()] == before.get("widgets_values", [])
    preview = page.js(
        "fetch('/api/workflow_templates/comfyui_nvfp4/"
        f"{example.stem}.jpg').then(found => found.headers.get('content-type'))"
    )
    assert preview == "image/jpeg"


def test_the_bar_moves_and_the_summary_shows(page, long_model):
    page.add("NVFP4Convert", model_file=long_model, name="from_page")
    page.press("Run")
    page.wait("app.graph._nodes[0].progress > 0.05 && app.graph._nodes[0].progress < 1")
    page.wait("document.querySelector('.nvfp4-summary')?.innerText.includes('from_page')")
    assert page.server.model("from_page.safetensors").exists()


def test_the_report_shows_in_the_check_node(page, client):
    done = client.run({"1": page.server.convert("wan.safetensors", "to_check")})
    assert done.ended == "execution_success"
    page.refresh()
    page.add("NVFP4CheckFile", model_file="to_check.safetensors", source="wan.safetensors")
    page.press("Run")
    page.wait("document.querySelector('.nvfp4-summary')?.innerText.includes('to_check')")
    page.js("app.graph._nodes[0].widgets.find(one => one.name == 'nvfp4_page').callback()")
    address = page.wait("document.querySelector('dialog.nvfp4-report iframe')?.src")
    report = page.server.get_bytes(address.partition(page.server.address + "/")[2]).decode()
    assert "<html" in report
    assert "blocks.3.ffn.0" in report
    page.js("document.querySelector('dialog.nvfp4-report').close()")


def test_the_page_complains_of_nothing(page):
    """ComfyUI's own page has a complaint of its own at its start."""
    own = "ComfyApp graph accessed before initialization"
    assert [line for line in page.browser.complaints if own not in line and "nvfp4" in line] == []


def test_an_error_is_on_its_node_and_names_the_file(page):
    page.server.model("torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0torn")
    page.refresh()
    page.add("NVFP4Convert", model_file="torn.safetensors", name="never")
    page.press("Run")
    message = page.wait("app.lastExecutionError?.exception_message")
    assert "torn.safetensors: not a safetensors file" in message


SUMMARY = "document.querySelector('.nvfp4-summary')"
# What stands on the only node: ComfyUI's line of progress, and the state and text of the summary.
SHOWN = f"""(() => {{
  const line = app.graph._nodes[0].widgets.find(one => one.name == "$$node-text-preview");
  return [line?.value, {SUMMARY}.dataset.state, {SUMMARY}.innerText];
}})()"""


def test_a_run_that_ends_early_says_so_and_keeps_no_summary(page, long_model):
    page.add("NVFP4Convert", model_file="wan.safetensors", name="earlier")
    page.press("Run")
    page.wait(f"{SUMMARY}?.dataset.state == 'done'")
    change = "app.graph._nodes[0].widgets.find(one => one.name == '{}').value = '{}'"
    page.js(change.format("model_file", long_model))
    page.js(change.format("name", "early"))
    page.press("Run")
    page.wait("app.graph._nodes[0].progress > 0.05")
    assert page.js(SHOWN)[1] == "earlier"
    assert page.js(SHOWN)[2].startswith("An earlier run:")
    page.server.post("interrupt", {})
    page.wait(f"{SUMMARY}.dataset.state == 'cancelled'")
    assert page.js(SHOWN) == ["cancelled", "cancelled", "cancelled"]
    page.js(change.format("more_options", "--edge-blocks x"))
    page.press("Run")
    page.wait(f"{SUMMARY}.dataset.state == 'failed'")
    line, _, text = page.js(SHOWN)
    assert line == "failed"
    assert text.startswith("failed: more_options: --edge-blocks: ")
    buttons = page.js("app.graph._nodes[0].widgets.map(one => one.label ?? '')")
    assert "Show report of the earlier run" in buttons


def test_a_size_below_what_is_counted_is_not_no_limit(page):
    page.add("NVFP4Convert", model_file="wan.safetensors")
    size = "app.graph._nodes[0].widgets.find(one => one.name == 'target_size_gb')"
    found = page.js(
        f"(() => {{ const widget = {size}; return [0, 0.0001, 0.219, 5000].map(value =>"
        " { widget.value = value; widget.callback(value); return widget.value; }); })()"
    )
    assert found == [0, 0.001, 0.219, 5000]
