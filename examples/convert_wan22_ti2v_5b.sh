#!/usr/bin/env bash
# Wan 2.2 TI2V 5B. More options go through: examples/convert_wan22_ti2v_5b.sh --dry-run
set -euo pipefail

# Where things are: the original model's folder, the GGUF, and where ComfyUI looks for models.
SOURCES="${SOURCES:-$HOME/models}"
GGUFS="${GGUFS:-$HOME/ComfyUI/models/diffusion_models}"
OUTPUTS="${OUTPUTS:-$HOME/ComfyUI/models/diffusion_models}"
PYTHON="${PYTHON:-python}"

SCRIPT="$(cd "$(dirname "$0")/.." && pwd)/convert_nvfp4.py"

"$PYTHON" "$SCRIPT" \
  "$SOURCES/wan2.2-ti2v-5b/diffusion_pytorch_model.safetensors.index.json" \
  "$OUTPUTS/wan2.2-ti2v-5b-nvp4mixed.safetensors" \
  --gguf "$GGUFS/Wan2.2-TI2V-5B-Q5_K_M.gguf" --recipe-file wan22-ti2v-5b "$@"
