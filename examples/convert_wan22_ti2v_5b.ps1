# Wan 2.2 TI2V 5B. More options go through, such as --dry-run.
# Start it with: powershell -ExecutionPolicy Bypass -File examples\convert_wan22_ti2v_5b.ps1
$ErrorActionPreference = "Stop"

# Where things are: the original model's folder, the GGUF, and where ComfyUI looks for models.
$Sources = if ($env:SOURCES) { $env:SOURCES } else { "D:\models" }
$Ggufs = if ($env:GGUFS) { $env:GGUFS } else { "D:\ComfyUI\ComfyUI\models\diffusion_models" }
$Outputs = if ($env:OUTPUTS) { $env:OUTPUTS } else { "D:\ComfyUI\ComfyUI\models\diffusion_models" }
$Python = if ($env:PYTHON) { $env:PYTHON } else { "python" }

$Script = Join-Path (Join-Path $PSScriptRoot "..") "convert_nvfp4.py"
& $Python $Script `
    (Join-Path (Join-Path $Sources "wan2.2-ti2v-5b") "diffusion_pytorch_model.safetensors.index.json") `
    (Join-Path $Outputs "wan2.2-ti2v-5b-nvp4mixed.safetensors") `
    --gguf (Join-Path $Ggufs "Wan2.2-TI2V-5B-Q5_K_M.gguf") --recipe-file wan22-ti2v-5b @args
exit $LASTEXITCODE
