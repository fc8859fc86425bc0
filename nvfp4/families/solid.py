"""Families of models that make 3D objects: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`.
"""

from __future__ import annotations

from nvfp4.families.records import (
    ATTENTION_QKV,
    ATTENTION_V,
    DOWN_PROJECTION,
    EIGHT_BITS,
    FLUX_BLOCKS,
    MODULATION,
    TEXT_ATTENTION,
    Family,
    Keep,
)

FUSED_QKV = Keep(
    r"\.(self_attn\.to_qkv|cross_attn\.to_kv|attn\.qkv)$",
    EIGHT_BITS,
    "fused attention QKV: by structure",
)
MLP_DOWN = Keep(r"\.mlp\.mlp\.2$", EIGHT_BITS, "feed-forward down projection: by structure")
# Keys and shapes are as ComfyUI reads them (comfy/model_detection.py, 0.33). No published file says
# which layers of these are sensitive: the rows go by structure, Hunyuan3D 2 as Flux, which it is
# built like.
SOLID_FAMILIES = {
    "hunyuan3d-2": Family(
        title="Hunyuan3D 2",
        keys=(r"latent_in\.weight ", r"cond_in\.weight ", r"double_blocks\.0\.img_attn\.qkv\."),
        blocks=FLUX_BLOCKS,
        outside=("latent_in", "cond_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, TEXT_ATTENTION, ATTENTION_QKV),
        makes=("3D",),
        known_as=("hunyuan3d-dit-v2", "hunyuan3d mini", "hunyuan3d turbo"),
    ),
    "hunyuan3d-2.1": Family(
        title="Hunyuan3D 2.1",
        keys=(r"x_embedder\.weight ", r"blocks\.0\.attn1\.k_norm\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder", "t_embedder.mlp.0", "final_layer.linear"),
        uneven=True,
        keeps=(
            Keep(r"\.moe\.gate$", "16-bit", "router of the experts: small, and chooses for tokens"),
            ATTENTION_V,
            DOWN_PROJECTION,
        ),
        makes=("3D",),
        known_as=("hunyuan_3d_v2.1", "hunyuan3d-dit-v2-1"),
    ),
    # Four models in one file: the structure, the shape in two sizes, the texture.
    "trellis2": Family(
        title="Trellis 2",
        keys=(r"(img2shape|shape2txt)\.t_embedder\.mlp\.0\.weight ", r"structure_model\."),
        variants={"Pixal3D": r"\w+\.blocks\.0\.cross_attn\.proj_linear\.weight "},
        blocks=(
            ("structure_model.blocks",),
            ("img2shape.blocks",),
            ("img2shape_512.blocks",),
            ("shape2txt.blocks",),
        ),
        outside=(
            "structure_model.input_layer",
            "structure_model.out_layer",
            "img2shape.input_layer|shape2txt.input_layer",
            "img2shape_512.out_layer",
        ),
        keeps=(FUSED_QKV, MLP_DOWN),
        makes=("3D",),
        known_as=("trellis", "pixal3d"),
    ),
    "triposplat": Family(
        title="TripoSplat",
        keys=(r"cam_out_layer\.weight ", r"repo_layers\.0\.final_map\.weight "),
        blocks=(("blocks",),),
        outside=("input_layer", "t_embedder.mlp.0", "cond_embedder", "out_layer", "cam_out_layer"),
        keeps=(FUSED_QKV, MLP_DOWN),
        makes=("3D",),
    ),
}
