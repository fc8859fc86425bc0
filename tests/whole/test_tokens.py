"""Small models of published families, run by ComfyUI: layers meet the tokens we say they do."""

import pytest

from nvfp4.families import recognise
from nvfp4.read.checkpoint import open_model
from nvfp4.tokens import group_of
from support.comfyui import needs_comfyui, run_comfyui
from support.tiny import TOKENS
from support.tiny_models import KINDS, LOAD_AND_RUN, skip_unknown, tiny_model


@needs_comfyui
@pytest.mark.parametrize("kind", [kind for kind, tiny in KINDS.items() if tiny.counted])
def test_layers_multiply_the_tokens_of_their_group(kind, tmp_path):
    skip_unknown(kind)
    path = tiny_model(kind, tmp_path / "m.safetensors")
    family, _ = recognise(open_model(path))
    rows = run_comfyui(LOAD_AND_RUN, MODEL=str(path), KIND=kind)[0]["rows"]
    counts = TOKENS | KINDS[kind].counts
    groups = {layer: group_of(layer, family).split("+") for layer in rows}
    # How many tokens go to an expert depends on their values.
    varying = {name for name, count in counts.items() if count is None}
    rows = {layer: count for layer, count in rows.items() if not varying & {*groups[layer]}}
    expected = {layer: sum(map(counts.get, groups[layer])) for layer in rows}
    if kind == "qwen_image_edit_2511":
        # The reference image is modulated at time step zero, and so on its own.
        rows = {layer: 1 if expected[layer] == 1 else count for layer, count in rows.items()}
    assert rows == expected
    assert len(rows) > 30
