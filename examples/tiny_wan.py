"""Make a tiny Wan-shaped model and convert it as the documented Wan 2.2 command line does.

Usage: python examples/tiny_wan.py [FOLDER]     (default: out/tiny_wan in the current folder)
"""

import shlex
import subprocess
import sys
from pathlib import Path

# The Python of a portable ComfyUI does not look into the folder of the script that it runs.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# make_wan comes first: it tells what is not installed.
from make_wan import wan_shapes, write_gguf, write_model
from torch import float32

ROOT = Path(__file__).resolve().parent.parent
# The notes above it are on a model of two blocks, and worry who only wants to know this.
WORKS = """
It works: notes and hints above are about the tiny model. Now your own, for your card (RTX 50:
blackwell, 40: ada, 30: ampere, 20: turing, Radeon RX 9000 and 7000: rdna):
  python convert_nvfp4.py MODEL.safetensors --card blackwell"""


def main(folder: Path) -> int:
    """Make the model in `folder`, print the command and run it; return its exit code.

    The command is the documented one for Wan 2.2 5B, with the shipped calibration and layer list,
    on a model of the same names and a fraction of its size: both tell of more blocks than it has,
    which --partial-guide allows.
    """
    shapes = wan_shapes("tiny")
    index = write_model(folder, shapes, float32)
    gguf = folder / "tiny-wan-Q5_K_M.gguf"
    write_gguf(gguf, shapes)
    # fmt: off
    command = [
        sys.executable, str(ROOT / "convert_nvfp4.py"),
        str(index), str(folder / "tiny-wan-nvfp4mixed.safetensors"),
        "--gguf", str(gguf), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--low-mem",
        "--gguf-keep-edge-blocks-fp16", "--quant-dtype", "float32", "--dtype", "float16",
        "--input-scale-summary-json", "scales_summary_wan22_5b.json",
        "--input-scale-summary-percentile", "99.9", "--input-scale-summary-multiplier", "1.08",
        "--full-precision-mm-layers", "sensitive_layers_wan22_5b.txt",
        "--full-precision-mm-cross-attn-qkvo", "--partial-guide",
    ]
    # fmt: on
    print(shlex.join(["python", "convert_nvfp4.py", *command[2:]]), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        print(WORKS, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/tiny_wan")))
