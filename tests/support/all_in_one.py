"""All-in-one files: a small diffusion model beside text encoders of every kind, and a VAE."""

import json

import torch

MODEL = "model.diffusion_model."
T5 = "text_encoders.umt5xxl.transformer."
CLIP = "text_encoders.clip_l.transformer."
GENERATOR = torch.Generator().manual_seed(3)


def random(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def as_bytes(config):
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def wan(blocks=5):
    """A 16-bit model that is recognised as Wan, without prefix."""
    shapes = {
        "patch_embedding.weight": (64, 16, 1, 2, 2),
        "head.modulation": (1, 2, 64),
        "head.head.weight": (64, 64),
    }
    outside = ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2")
    shapes |= {f"{name}.weight": (64, 64) for name in (*outside, "time_projection.1")}
    for i in range(blocks):
        shapes |= {f"blocks.{i}.self_attn.{p}.weight": (64, 64) for p in "qkvo"}
        shapes |= {f"blocks.{i}.ffn.0.weight": (128, 64), f"blocks.{i}.ffn.2.weight": (64, 128)}
    return {name: (random(*shape) * 0.1).bfloat16() for name, shape in shapes.items()}


def names(prefix):
    layers = "qkvo"
    return [f"{prefix}encoder.block.{i}.layer.0.SelfAttention.{p}" for i in (0, 1) for p in layers]


def fp8(weight):
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def scaled_fp8(prefix=T5, marker=2):
    """Scaled FP8 with a marker of its own, as Comfy-Org's all-in-one files have it."""
    tensors = {f"{prefix}scaled_fp8": torch.zeros(marker).to(torch.float8_e4m3fn)}
    for name in names(prefix):
        codes, scale = fp8(random(64, 64))
        tensors |= {f"{name}.weight": codes, f"{name}.scale_weight": scale.reshape(1)}
    return tensors | {f"{prefix}shared.weight": random(96, 64).half()}


def configured(form, prefix=T5, **more):
    """Layers with comfy_quant, in a format that this package need not know."""
    tensors = {}
    for name in names(prefix):
        codes, scale = fp8(random(64, 64))
        parts = {
            "float8_e4m3fn": {"weight": codes, "weight_scale": scale},
            "int8_tensorwise": {"weight": (random(64, 64) * 40).to(torch.int8),
                                "weight_scale": random(64, 1).abs()},
            "mxfp8": {"weight": codes, "weight_scale": torch.full((128, 4), 127).byte()},
            "nvfp4": {"weight": torch.randint(0, 255, (64, 32)).byte(),
                      "weight_scale": torch.ones(128, 4).to(torch.float8_e4m3fn),
                      "weight_scale_2": scale},
        }[form]  # fmt: skip
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        # Without the blank that json.dumps puts after a colon.
        text = json.dumps({"format": form, **more}, separators=(",", ":")).encode()
        tensors[f"{name}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors


def plain_fp8(prefix=T5):
    return {f"{name}.weight": random(64, 64).to(torch.float8_e4m3fn) for name in names(prefix)}


def e5m2(prefix=T5):
    return {f"{name}.weight": random(64, 64).to(torch.float8_e5m2) for name in names(prefix)}


VAE = {
    "first_stage_model.decoder.conv_in.weight": random(16, 4, 3, 3).half(),
    "first_stage_model.decoder.conv_in.bias": random(16),
}
# What may lie beside the model, by what it is.
BESIDE = {
    "scaled FP8": scaled_fp8(),
    "scaled FP8 with FP8 matmul": scaled_fp8(marker=0),
    "two scaled FP8": scaled_fp8() | scaled_fp8(CLIP, marker=0),
    "FP8": configured("float8_e4m3fn"),
    "INT8": configured("int8_tensorwise"),
    "MXFP8": configured("mxfp8", full_precision_matrix_mult=True),
    "NVFP4": configured("nvfp4"),
    "plain FP8": plain_fp8(),
    "E5M2": e5m2(),
    "scaled FP8 and INT8": scaled_fp8() | configured("int8_tensorwise", CLIP),
}


def all_in_one(kind, **more):
    """The tensors of a file: the model under ComfyUI's prefix, what lies beside it, a VAE."""
    model = {MODEL + name: tensor for name, tensor in (wan() | more).items()}
    return model | BESIDE[kind] | VAE
