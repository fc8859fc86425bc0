"""The ComfyUI recorder, as tests use it: from the folder of the node pack, without ComfyUI."""

from comfyui_nvfp4 import recorder, second_moments, workflow

__all__ = ["recorder", "second_moments", "workflow"]
