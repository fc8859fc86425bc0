"""Workflows in ComfyUI's API form: {node id: {"class_type", "inputs"}}."""


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def sampling(loader: dict, prompt: str = "a red square", steps: int = 4) -> dict:
    """Sample 5 latent frames of 32 x 32, the small Wan's size, from the model that "1" gives."""
    return {
        "1": loader,
        "2": node("CLIPLoader", clip_name="umt5.safetensors", type="wan", device="default"),
        "3": node("CLIPTextEncode", text=prompt, clip=["2", 0]),
        "4": node("CLIPTextEncode", text="", clip=["2", 0]),
        "5": node("EmptyHunyuanLatentVideo", width=256, height=256, length=17, batch_size=1),
        "6": node(
            "KSampler", model=["1", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0],
            seed=7, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "7": node("SaveLatent", samples=["6", 0], filename_prefix="latents/sampled"),
    }  # fmt: skip


def loader(name: str) -> dict:
    return node("UNETLoader", unet_name=name, weight_dtype="default")
