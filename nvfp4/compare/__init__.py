"""Compare two checkpoints, or list one, and say what ComfyUI will do with each."""
