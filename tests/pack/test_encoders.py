"""Text encoders that record: those of one CLIP, each by itself, named as in its own file."""

import pytest
from safetensors import safe_open

from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.paths import ROOT

pytestmark = [needs_comfyui, pytest.mark.slow]

# Flux's two encoders, small, and a workflow that loads them.
SCRIPT = (
    PREAMBLE
    + f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from types import SimpleNamespace
import comfy.text_encoders.flux as flux
from comfyui_nvfp4.encoders import encoders_of, watched_clip
from comfyui_nvfp4.recorder import Recording, linear_layers

folder = Path(os.environ["OUT"])
sizes = {{
    "clip_l_model_config": dict(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2),
    "t5xxl_model_config": dict(num_layers=1, d_model=64, d_ff=128, d_kv=32, num_heads=2),
}}
target = SimpleNamespace(params={{}}, clip=flux.flux_clip(), tokenizer=flux.FluxTokenizer)
clip = comfy.sd.CLIP(target, model_options=sizes)
for one in clip.cond_stage_model.parameters():
    torch.nn.init.normal_(one, std=0.02)
names = [*encoders_of(clip)]
recordings = {{name: Recording(folder, name, encoder=name) for name in names}}
watched = watched_clip(clip, recordings)
tokens = watched.tokenize("a red square on a green table")
plain = clip.encode_from_tokens(tokens)
# As a LoRA loader does it, then as CLIPTextEncode does.
recorded = watched.clone()
recorded.clip_layer(-1)
same = recorded.encode_from_tokens_scheduled(tokens)[0][0]
with watched.recording():
    for text in ("one", "two"):
        watched.encode_from_tokens(watched.tokenize(text))
    during = [path.exists() for path in sorted(folder.glob("*"))]
answer = {{
    "names": names, "same": bool(torch.equal(plain, same)),
    "is_clip": isinstance(watched, comfy.sd.CLIP), "type": type(clip).__name__,
    "layers": {{name: [*linear_layers(part)] for name, part in encoders_of(clip).items()}},
    "calls": {{name: (folder / f"{{name}}.log").read_text("utf-8").count("\\n") for name in names}},
}}
# A mask is an encoder's own: only the tokens that it attends are rows.
t5 = encoders_of(clip)["t5xxl"]
masked = Recording(folder, "masked", encoder="t5xxl")
embeds, mask = torch.randn(1, 12, 64), torch.tensor([[1] * 5 + [0] * 7])
with torch.no_grad(), masked.watching(t5):
    t5(None, mask, embeds=embeds)
with torch.no_grad(), masked.watching(t5):
    t5(None, None, embeds=embeds)
print("RESULT", json.dumps(answer))
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def answer(folder):
    return run_comfyui(SCRIPT, OUT=str(folder))[0]


def test_each_encoder_of_a_clip_has_a_recording_named_as_its_file(answer, folder):
    assert answer["names"] == ["clip_l", "t5xxl"]
    for name, layers in answer["layers"].items():
        with safe_open(folder / f"{name}.safetensors", "pt") as recording:
            assert recording.metadata()["encoder"] == name
            recorded = {key.rpartition(".")[0] for key in recording.keys()}  # noqa: SIM118
        assert recorded <= {*layers}
    assert "text_model.encoder.layers.0.self_attn.q_proj" in answer["layers"]["clip_l"]
    assert "encoder.block.0.layer.1.DenseReluDense.wi_1" in answer["layers"]["t5xxl"]


def test_a_recorded_clip_is_a_clip_and_so_are_its_clones(answer):
    assert answer["same"]
    assert answer["is_clip"]
    assert answer["type"] == "CLIP"
    # Three texts, each encoded once, whatever calls what.
    assert answer["calls"] == {"clip_l": 3 * 13, "t5xxl": 3 * 7}


@pytest.mark.usefixtures("answer")
def test_rows_of_padding_are_left_out_where_a_mask_tells_them(folder):
    with safe_open(folder / "masked.safetensors", "pt") as recording:
        assert recording.get_tensor("encoder.block.0.layer.0.SelfAttention.q.tokens") == 5 + 12
