"""The model card: the Hub's own parser takes it, names cannot break it, nothing local is told."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.conversion import convert
from nvfp4.errors import one_line
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options
from nvfp4.report.model_card import as_code, render_card
from support.conversions import convert_tiny

HOSTILE = "x`|```\n---\nlicense: mit\n# <script>alert(1)</script> [a](http://b) $$ \x1b[31m"


def front_and_body(text):
    """Split a card as the Hub does: at the lines of dashes."""
    empty, front, body = text.split("---\n", 2)
    assert empty == ""
    return front, body


@pytest.fixture(scope="module")
def card(tiny, tmp_path_factory):
    """The card of a conversion of the tiny Wan."""
    folder = tmp_path_factory.mktemp("card")
    convert_tiny(tiny, folder / "wan-nvfp4.safetensors", "--model-card", str(folder / "README.md"))
    return (folder / "README.md").read_text(encoding="utf-8")


def test_it_says_what_a_person_needs(card):
    front, body = front_and_body(card)
    assert "\n#base_model_relation: quantized\n" in front
    assert "\npipeline_tag: text-to-video\n" in front
    assert "**Fill in** at the top of this file: the licence, the base model." in body
    for told in (
        "# wan-nvfp4\n",
        "**Wan (T2V), quantised for ComfyUI**",
        "Put `wan-nvfp4.safetensors` into `ComfyUI/models/diffusion_models`.",
        "**Load Diffusion Model**, weight_dtype default",
        "It needs ComfyUI 0.10 or newer",
        "| GeForce RTX 50 |",
        "| NVFP4 |",
        "| Format | layers | median error |",
        "Formats follow the types of a GGUF: `model.gguf`.",
        "\npython convert_nvfp4.py ",
        " wan-nvfp4.safetensors --dtype float16 --low-mem --gguf model.gguf ",
        "| `diffusion_pytorch_model-00001-of-00002.safetensors` |",
    ):
        assert told in body, told


def test_it_has_no_folder_of_the_machine(card, tiny):
    assert str(tiny.parent) not in card


def test_the_hubs_own_parser_takes_it(card, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    data = hub.ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data == {
        "library_name": "diffusion-single-file",
        "pipeline_tag": "text-to-video",
        "tags": ["comfyui", "quantized", "nvfp4", "fp8"],
    }


def test_what_is_filled_in_is_valid_without_its_mark(card, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    filled = card.replace("\n#", "\n", 3).replace("FILL_IN", "me/x")
    (tmp_path / "README.md").write_text(filled, encoding="utf-8")
    data = hub.ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["license"], data["base_model"]) == ("me/x", "me/x")
    assert data["base_model_relation"] == "quantized"


def test_only_what_occurs_is_explained(card, tiny, tmp_path):
    assert "W4A16: weights of 4 bits are multiplied by activations of 16." in card
    assert "W4A8" not in card
    output = tmp_path / "o.safetensors"
    text = render_card(convert(Options(source=tiny, output=output, recipe="int8", dry_run=True)))
    assert "\nW8A8: weights and activations are of 8 bits. Linear" in text
    assert "W4A4" not in text
    assert "the preset `wan` decided which layers are quantised, the recipe `int8` to what" in text


def test_hostile_names_stay_names(tmp_path):
    source = tmp_path / f"{HOSTILE.replace('/', '_')}.safetensors"
    output = tmp_path / "--- `o`|.safetensors"
    # No tensor's name may have control characters.
    layer = f"blocks.0.{HOSTILE[:6]}{HOSTILE[24:-5]}"
    save_file({f"{layer}.weight": torch.randn(32, 32)}, source)
    made = convert(Options(source=source, output=output, preset="none", include=".", quiet=True))
    worse = {layer: Damage(error=1.0, energy=4.0)}
    text = render_card(dataclasses.replace(made, damage=worse))
    front, body = front_and_body(text)
    assert HOSTILE[0] not in "".join(line for line in front.splitlines() if line[0] != "#")
    assert "license: mit" not in text.splitlines()
    assert "\x1b" not in text
    markdown = pytest.importorskip("markdown_it")
    parsed = markdown.MarkdownIt("commonmark").enable("table").parse(body)
    inline = [part for token in parsed for part in token.children or ()]
    assert not {"html_block", "hr"} & {token.type for token in parsed}
    assert not {"html_inline", "link_open", "image"} & {part.type for part in inline}
    quoted = {part.content for part in inline if part.type == "code_inline"}
    assert {one_line(source.name), output.name, layer} <= quoted


def test_a_dry_run_says_so_and_tells_no_errors(tiny, tmp_path):
    card = tmp_path / "c.md"
    convert_tiny(tiny, tmp_path / "o.safetensors", "--dry-run", "--model-card", str(card))
    text = card.read_text(encoding="utf-8")
    assert "A dry run's card" in text
    assert "What was lost" not in text


def test_shards_are_not_for_comfyui(tiny, tmp_path):
    card = tmp_path / "c.md"
    more = ["--output-sharded", "--dry-run", "--model-card", str(card)]
    convert_tiny(tiny, tmp_path / "o.safetensors", *more)
    front, body = front_and_body(card.read_text(encoding="utf-8"))
    assert "comfyui" not in front
    assert "library_name" not in front
    assert "not shards" in body


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("", "` `")]
)
def test_code_is_code_whatever_is_in_it(text, shown):
    assert as_code(text) == shown
