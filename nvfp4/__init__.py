"""NVFP4 files for ComfyUI: converting, checking."""
