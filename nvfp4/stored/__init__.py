"""What a quantised file holds: its layers, and its defects by ComfyUI's contract."""
