"""Small models of published families, run by ComfyUI: layers meet the tokens we say they do."""

import pytest

from nvfp4.families import recognise
from nvfp4.read.checkpoint import open_model
from nvfp4.tokens import group_of
from support.comfyui import needs_comfyui, run_comfyui
from support.tiny_models import KINDS, LOAD_AND_RUN, tiny_model

# The tokens of LOAD_AND_RUN's inputs: 8 x 16 latents, 3 x 8 x 8 of a video, 64 tokens of text.
IMAGE, VIDEO, TEXT = 4 * 8, 3 * 4 * 4, 64
COUNTS = {
    **{kind: {"image": VIDEO, "clip": 257} for kind in KINDS if kind.startswith("wan")},
    "hunyuan_video": {"image": VIDEO},
    # Flux 2 and LTX-2 have no patches; the reference image of Qwen-Image-Edit is a second one.
    "flux2": {"image": 8 * 16},
    "ltx2": {"image": 3 * 8 * 8, "audio": 4},
    "qwen_image_edit_2511": {"image": 2 * IMAGE},
    "chroma": {"image": IMAGE, "modulations": 344},
    "anima": {"image": IMAGE, "text": 512, "prompt": TEXT},
}


@needs_comfyui
@pytest.mark.parametrize("kind", KINDS)
def test_layers_multiply_the_tokens_of_their_group(kind, tmp_path):
    path = tiny_model(kind, tmp_path / "m.safetensors")
    family, _ = recognise(open_model(path))
    rows = run_comfyui(LOAD_AND_RUN, MODEL=str(path), KIND=kind)[0]["rows"]
    counts = {"once": 1, "image": IMAGE, "text": TEXT} | COUNTS.get(kind, {})
    expected = {
        layer: sum(counts[name] for name in group_of(layer, family).split("+")) for layer in rows
    }
    if kind == "qwen_image_edit_2511":
        # The reference image is modulated at time step zero, and so on its own.
        rows = {layer: 1 if expected[layer] == 1 else count for layer, count in rows.items()}
    assert rows == expected
    assert len(rows) > 40
