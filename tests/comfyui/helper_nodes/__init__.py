"""For tests only: let ComfyUI's CLIPLoader take a small text encoder of Wan's kind.

Real UMT5 has 5.6 billion parameters, and ComfyUI takes its sizes from a file of its own instead of
the checkpoint. support/tiny_encoder.py writes the checkpoint that fits these.
"""

import json
from pathlib import Path

import comfy.text_encoders.wan as wan
from comfy import sd1_clip

NODE_CLASS_MAPPINGS = {}
SIZES = json.loads((Path(__file__).parent / "sizes.json").read_text(encoding="utf-8"))


class TinyUMT5(wan.UMT5XXlModel):
    """Wan's encoder with the sizes of sizes.json."""

    def __init__(self, *arguments, model_options=None, **keywords):
        name = "umt5xxl"
        options = {**(model_options or {}), "model_name": name, f"{name}_model_config": SIZES}
        super().__init__(*arguments, model_options=options, **keywords)


class TinyWanT5(wan.WanT5Model):
    """What ComfyUI makes for CLIPLoader's type "wan", around the small encoder."""

    def __init__(self, device="cpu", dtype=None, model_options=None, **keywords):
        sd1_clip.SD1ClipModel.__init__(
            self,
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            name="umt5xxl",
            clip_model=TinyUMT5,
            **keywords,
        )


wan.WanT5Model = TinyWanT5
