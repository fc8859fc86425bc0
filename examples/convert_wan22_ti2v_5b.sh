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
  --gguf "$GGUFS/Wan2.2-TI2V-5B-Q5_K_M.gguf" --gguf-nvfp4-max-bitdepth 5 \
  --low-mem --gguf-keep-edge-blocks-fp16 --quant-dtype float32 --dtype float16 \
  --input-scale-summary-json scales_summary_wan22_5b.json \
  --input-scale-summary-percentile 99.9 --input-scale-summary-multiplier 1.08 \
  --full-precision-mm-layers sensitive_layers_wan22_5b.txt \
  --full-precision-mm-cross-attn-qkvo "$@"
