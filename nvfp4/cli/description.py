"""The text of `--help` before the options, and of `-h`.

The help's text for each option stands in its row of `options.table`. What is said here of the order
of decisions is held against the code by people alone: whoever changes `plan.rules` changes it, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from nvfp4.options import Option

# Lines are at most 100 characters, as argparse prints them unchanged.
DESCRIPTION = """\
Convert a large diffusion transformer to one file of 4-bit, 8-bit and 16-bit layers that ComfyUI
loads.

NVFP4 stores a weight in 4 bits plus one 8-bit scale per 16 weights: a third of the memory of
16-bit, and twice the speed on Blackwell cards. Other cards multiply W4A8, W6A8 and INT8 fast, which
--card, --formats and --recipe choose from. Not every layer survives 4 bits. With a GGUF, layers
that it gave few bits become NVFP4, and layers that it gave more become FP8 or INT8, or stay 16-bit;
without one, the model's family decides. Sharded safetensors are read tensor by tensor; the file
gets its name only once it is complete and checked.

How a tensor's precision is chosen (first that applies wins, floors last):
  1. --exclude keeps 16-bit; --include makes NVFP4; then --layer-config and --target-size
  2. edge blocks: the first and last transformer blocks stay 16-bit, --edge-blocks N of them
  3. the GGUF's type: F32 -> float32, F16/BF16 -> --dtype, up to --gguf-nvfp4-max-bitdepth bits
     -> NVFP4, more -> FP8 with --use-fp8, INT8 with --use-int8, else --dtype
  4. without a GGUF the model family's row: --preset, --list-presets. Most layers become NVFP4;
     those that need 8 bits become INT8, and those that are harmed by 4-bit inputs become W4A8, as
     far as --formats or --card allow
  5. floors: --recipe, the least of --formats, --min-ffn-fp8, --min-ffn2-fp16, marks with
     --sensitive-as w4a8 or int8, layers ComfyUI recognises a model by, shapes that Blackwell cannot
     multiply in FP4, anything that is not a linear layer's weight
  A weight whose columns are no multiple of 256 is INT8 without rotation instead of W4A8 or W6A8.

A weight is rounded to the least error of itself, or with --activation-stats, where its layer's
input was recorded with second moments, to the least error of the layer's output. What is stored for
a layer of each format, tensor by tensor: docs/file-format.md of the repository.

The documented Wan 2.2 command lines are recipes: --list-recipes shows what they need, recipes/ has
them as files to copy and to edit.
  I2V 14B       SOURCE OUTPUT --recipe-file wan22-i2v-14b-low --gguf GGUF, and ...-high likewise
  TI2V 5B       SOURCE OUTPUT --recipe-file wan22-ti2v-5b --gguf GGUF
  to calibrate  SOURCE OUTPUT --recipe-file wan22-calibrate --gguf GGUF
"""


# What `-h` prints around the everyday options; with these, lines are at most 80 characters.
EVERYDAY_HEAD = """\
usage: %(prog)s SOURCE [OUTPUT] [options]

Convert a 16-bit diffusion model to 4- and 8-bit formats that ComfyUI multiplies
in: %(prog)s wan2.2_ti2v_5B_fp16.safetensors
"""
EVERYDAY_TAIL = """
All options: %(prog)s --help. Pages: docs/README.md of the repository"""
# Columns of an option and its value in `-h`.
EVERYDAY_WIDTH = 22


def render_everyday(rows: Iterable[Option]) -> str:
    """Write what `-h` prints: a line for each row that is everyday, and where the rest is."""
    lines = [EVERYDAY_HEAD]
    for row in rows:
        if row.everyday:
            # FILE[:STRENGTH] is FILE here, and choices have the option's own name.
            value = row.kind.metavar.partition("[")[0] or row.name.upper() * bool(row.kind.choices)
            shown = f"{row.flag} {value}" if row.group else row.flag
            lines.append(f"  {shown:{EVERYDAY_WIDTH}}  {row.everyday}")
    return "\n".join([*lines, EVERYDAY_TAIL])
