"""Calibrate in one command: prompts sampled in a ComfyUI that is started for it, and recorded."""
