"""Questions to a ComfyUI: headers of whole models as its own classes have them, and ways to break
them."""

import base64
import json

from nvfp4.dtypes import round_up
from support.comfyui import PREAMBLE

# The state dicts of models that cases are about, and of a text encoder: {name: {key: shape}}.
SHAPES = (
    PREAMBLE
    + """
import comfy.ldm.hidream.model, comfy.ldm.wan.model, comfy.ldm.wan.model_animate
import comfy.ldm.modules.diffusionmodules.openaimodel as openai, comfy.text_encoders.wan

wan = {"dim": 1024, "ffn_dim": 2048, "num_heads": 8, "num_layers": 5}
hidream = {
    "patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": [4096, 4096],
    "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": [*range(32)] + [31] * 16,
}
sdxl = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "num_classes": "sequential",
    "adm_in_channels": 2816, "context_dim": 2048, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    "num_head_channels": 64,
}
KINDS = {
    "wan": (comfy.ldm.wan.model.WanModel, wan),
    "s2v": (comfy.ldm.wan.model.WanModel_S2V, wan | {"num_layers": 40}),
    "animate": (comfy.ldm.wan.model_animate.AnimateWanModel, wan | {"in_dim": 36}),
    "hidream": (comfy.ldm.hidream.model.HiDreamImageTransformer2DModel, hidream),
    "sdxl": (openai.UNetModel, sdxl),
}
def shapes(module):
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
made = {"dtype": torch.bfloat16, "device": "meta"}
found = {kind: shapes(build(**arguments, **made, operations=comfy.ops.disable_weight_init))
         for kind, (build, arguments) in KINDS.items()}
import comfy.sdxl_clip, comfy.supported_models
clips = comfy.sdxl_clip.SDXLClipModel(**made).state_dict()
saved = comfy.supported_models.SDXL({}).process_clip_state_dict_for_saving(clips)
found["clips"] = {name: list(tensor.shape) for name, tensor in saved.items()}
found["encoder"] = shapes(comfy.text_encoders.wan.te()(**made))
print("RESULT", json.dumps(found))
"""
)


def config(**values: object) -> list:
    """The entry of a comfy_quant."""
    text = json.dumps(values).encode()
    return ["U8", [len(text)], base64.b64encode(text).decode()]


class Asked:
    """The header of a 16-bit file, to be quantised layer by layer, or broken."""

    def __init__(self, shapes: dict[str, list[int]], prefix: str = ""):
        self.metadata = {}
        self.tensors = {prefix + name: ["BF16", shape, None] for name, shape in shapes.items()}

    @property
    def question(self) -> dict:
        return {"metadata": self.metadata, "tensors": self.tensors}

    def nvfp4(self, layer: str):
        """Pack a layer as this converter does."""
        n, k = self.tensors[f"{layer}.weight"][1]
        rows, columns = round_up(n, 16), round_up(k, 16)
        self.tensors[f"{layer}.weight"] = ["U8", [rows, columns // 2], None]
        tiles = [round_up(rows, 128), round_up(columns // 16, 4)]
        self.tensors[f"{layer}.weight_scale"] = ["F8_E4M3", tiles, None]
        self.tensors[f"{layer}.weight_scale_2"] = ["F32", [], None]
        self.tensors[f"{layer}.comfy_quant"] = config(format="nvfp4")
        return self

    def fp8(self, layer: str):
        """Store a layer as FP8."""
        self.tensors[f"{layer}.weight"][0] = "F8_E4M3"
        self.tensors[f"{layer}.weight_scale"] = ["F32", [], None]
        self.tensors[f"{layer}.comfy_quant"] = config(format="float8_e4m3fn")
        return self

    def int8(self, layer: str):
        """Store a layer as INT8 with a scale for each row."""
        self.tensors[f"{layer}.weight"][0] = "I8"
        rows = self.tensors[f"{layer}.weight"][1][0]
        self.tensors[f"{layer}.weight_scale"] = ["F32", [rows, 1], None]
        self.tensors[f"{layer}.comfy_quant"] = config(format="int8_tensorwise")
        return self

    def scaled_fp8(self, layer: str):
        """Store a layer in the older form, which a marker makes ComfyUI read."""
        self.tensors[f"{layer}.weight"][0] = "F8_E4M3"
        self.tensors[f"{layer}.scale_weight"] = ["F32", [1], None]
        return self

    def mark(self, prefix: str = ""):
        """Add the marker of that form."""
        self.tensors[f"{prefix}scaled_fp8"] = ["F8_E4M3", [2], None]
        return self
