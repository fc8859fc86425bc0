# Wan 2.2 I2V 14B, high and low noise, one after the other; stops at the first failure.
# Start it with: powershell -ExecutionPolicy Bypass -File examples\convert_wan22_i2v_14b.ps1
# More options go through to both, such as --dry-run.
$ErrorActionPreference = "Stop"

# Where things are: the original models' folders, the GGUFs, and where ComfyUI looks for models.
$Sources = if ($env:SOURCES) { $env:SOURCES } else { "D:\models" }
$Ggufs = if ($env:GGUFS) { $env:GGUFS } else { "D:\ComfyUI\ComfyUI\models\diffusion_models" }
$Outputs = if ($env:OUTPUTS) { $env:OUTPUTS } else { "D:\ComfyUI\ComfyUI\models\diffusion_models" }
$Python = if ($env:PYTHON) { $env:PYTHON } else { "python" }

$Script = Join-Path (Join-Path $PSScriptRoot "..") "convert_nvfp4.py"
$More = $args
foreach ($Noise in "high", "low") {
    & $Python $Script `
        (Join-Path (Join-Path $Sources "wan2.2-i2v-a14b-$Noise-noise") "diffusion_pytorch_model.safetensors.index.json") `
        (Join-Path $Outputs "wan2.2-i2v-${Noise}noise-nvfp4mixed.safetensors") `
        --gguf (Join-Path $Ggufs "Wan2.2-I2V-A14B-${Noise}Noise-Q5_K_M.gguf") `
        --recipe-file "wan22-i2v-14b-$Noise" @More
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
