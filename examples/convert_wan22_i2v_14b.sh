#!/usr/bin/env bash
# Wan 2.2 I2V 14B, high and low noise, one after the other; stops at the first failure.
# More options go through to both: examples/convert_wan22_i2v_14b.sh --dry-run
set -euo pipefail

# Where things are: the original models' folders, the GGUFs, and where ComfyUI looks for models.
SOURCES="${SOURCES:-$HOME/models}"
GGUFS="${GGUFS:-$HOME/ComfyUI/models/diffusion_models}"
OUTPUTS="${OUTPUTS:-$HOME/ComfyUI/models/diffusion_models}"
PYTHON="${PYTHON:-python}"

SCRIPT="$(cd "$(dirname "$0")/.." && pwd)/convert_nvfp4.py"

convert() { # high or low
  local noise=$1
  shift
  "$PYTHON" "$SCRIPT" \
    "$SOURCES/wan2.2-i2v-a14b-$noise-noise/diffusion_pytorch_model.safetensors.index.json" \
    "$OUTPUTS/wan2.2-i2v-${noise}noise-nvfp4mixed.safetensors" \
    --gguf "$GGUFS/Wan2.2-I2V-A14B-${noise}Noise-Q5_K_M.gguf" \
    --recipe-file "wan22-i2v-14b-$noise" "$@"
}

convert high "$@"
convert low "$@"
