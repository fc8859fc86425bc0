"""Compare two checkpoints, or list one, and judge them for ComfyUI.

`command` reads the command line, and `entry` carries it out. `sides` opens a file, `describe` makes
data of it, `pairs` puts two files side by side, `values` measures decoded weights, `verdict` judges
a file, and `render` makes text of the data. `schemes` alone knows how formats differ.
"""
