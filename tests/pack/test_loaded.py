"""A MODEL of ComfyUI as files in memory: what it was loaded as, and what its patches make of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.conversion import convert
from nvfp4.options import Options
from support.comfyui import PREAMBLE, loaded_formats, needs_comfyui, run_comfyui
from support.loras import loha, lora
from support.paths import ROOT
from support.tiny_models import tiny_model

pytestmark = [needs_comfyui, pytest.mark.slow]

# Loads MODEL, puts patches on it, and hands the results back as files in OUT.
SCRIPT = (
    PREAMBLE
    + f"""
import contextlib
sys.path.insert(0, {str(ROOT)!r})
import comfy.model_management as management
from safetensors.torch import load_file, save_file
from comfyui_nvfp4.converter import converter
from comfyui_nvfp4.loaded import show_model

program, out, answer = converter(), os.environ["OUT"], {{}}

def load(name, **options):
    return comfy.sd.load_diffusion_model(os.path.join(out, name), model_options=options)

def with_lora(model, name, strength):
    state = comfy.utils.load_torch_file(os.path.join(out, name))
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]

def made(model, name, **options):
    shown = show_model(model)
    with contextlib.ExitStack() as files:
        given = shown.path.name, shown.weights, shown.metadata
        source, merge = files.enter_context(program.memory_file(*given)), []
        if shown.merged:
            merge = [(files.enter_context(program.memory_file("p", shown.merged)), 1.0)]
        program.convert(program.Options(
            source=source, output=os.path.join(out, name), merge_lora=merge, quiet=True, **options))
    return shown

def refused(function, *arguments):
    try:
        return function(*arguments) and "taken"
    except program.ConvertError as error:
        return str(error)
"""
)


def asked(folder, script):
    script = f"FORMATS = {loaded_formats()!r}\n{script}"
    return run_comfyui(SCRIPT + script + '\nprint("RESULT", json.dumps(answer))', OUT=str(folder))[
        0
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Wan, an FP8 conversion of it, and LoRAs of several kinds."""
    folder = tmp_path_factory.mktemp("loaded")
    wan = tiny_model("wan_t2v", folder / "wan.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(wan).items()}
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    }
    parts = {}
    for index, (layer, shape) in enumerate(layers.items()):
        one, name = loha if index % 3 == 1 else lora, f"diffusion_model.{layer}"
        scale = {"dora_scale": torch.full((shape[0], 1), 0.9)} if index % 3 == 2 else {}
        parts |= {k: 0.1 * v for k, v in one(name, shape, rank=4).items()} | {
            f"{name}.{key}": value for key, value in scale.items()
        }
        parts[f"{name}.alpha"] = torch.tensor(2.0)
    parts["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.full(
        (shapes["blocks.0.ffn.0.bias"]), 0.5
    )
    parts["diffusion_model.patch_embedding.diff"] = torch.full(
        shapes["patch_embedding.weight"], 0.1
    )
    save_file(parts, folder / "style.safetensors")
    fp8 = Options(source=wan, output=folder / "fp8.safetensors", recipe="fp8", quiet=True)
    convert(fp8)
    everything = Options(source=wan, output=folder / "all.safetensors", preset="all", quiet=True)
    convert(everything)
    return folder


def same(path, other):
    first, second = load_file(path), load_file(other)
    return first.keys() == second.keys() and not [
        name
        for name, tensor in first.items()
        if tensor.dtype != second[name].dtype
        or not torch.equal(
            tensor.reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8)
        )
    ]


def test_conversions_have_the_bytes_of_the_command_line(folder):
    """Loaded or in use, patched in its place or not; the model itself stays as it was."""
    answer = asked(
        folder,
        """
model = load("wan.safetensors")
shown = made(model, "plain.safetensors")
answer["notes"], answer["lost"] = shown.notes, shown.lost
answer["name"] = shown.path.name
patched = with_lora(model, "style.safetensors", 0.5)
before = {k: v.clone() for k, v in patched.model.state_dict().items()}
made(patched, "merged.safetensors")
after = patched.model.state_dict()
answer["changed"] = [k for k, v in before.items() if not torch.equal(v, after[k])]
management.load_models_gpu([patched])
answer["in place"] = len(patched.backup)
made(patched, "in_place.safetensors")
made(model, "plain_in_place.safetensors")
management.unload_all_models()
made(load("fp8.safetensors"), "from_fp8.safetensors")
made(with_lora(load("fp8.safetensors"), "style.safetensors", 0.5), "from_fp8_merged.safetensors")
""",
    )
    assert answer["notes"] == []
    assert answer["lost"] == ""
    assert answer["changed"] == []
    assert answer["name"] == "wan.safetensors"
    assert answer["in place"] > 40
    style = [(folder / "style.safetensors", 0.5)]
    for source, merge, names in (
        ("wan", [], ("plain", "plain_in_place")),
        ("wan", style, ("merged", "in_place")),
        ("fp8", [], ("from_fp8",)),
        ("fp8", style, ("from_fp8_merged",)),
    ):
        expected = folder / f"expected_{source}_{len(merge)}.safetensors"
        source = folder / f"{source}.safetensors"
        convert(Options(source=source, output=expected, merge_lora=merge, quiet=True))
        for name in names:
            assert same(folder / f"{name}.safetensors", expected), name


def test_quantised_layers_go_over_as_they_are_and_patched_ones_are_decoded(folder):
    answer = asked(
        folder,
        """
model = load("all.safetensors")
shown = show_model(model)
stored = load_file(os.path.join(out, "all.safetensors"))
answer["names"] = [*shown.weights.keys() ^ stored.keys()]
parts = {n: t.values().reshape(-1).view(torch.uint8) for n, t in shown.weights.items()}
answer["other"] = [n for n, t in parts.items() if not n.endswith("comfy_quant")
                   and not torch.equal(t, stored[n].reshape(-1).view(torch.uint8))]
patched = show_model(with_lora(model, "style.safetensors", 0.5))
name = "blocks.2.ffn.0"
answer["beside"] = [n for n in patched.weights if n.startswith(name)]
answer["dtype"] = patched.weights[name + ".weight"].dtype
weight = model.model.diffusion_model.blocks[2].ffn[0].weight
base = weight.dequantize().float()
merged = patched.merged[name + ".set_weight"].values()
answer["moved"] = float((merged - base).norm() / base.norm())
made(with_lora(model, "style.safetensors", 0.5), "from_all.safetensors", formats=FORMATS)
answer["loads"] = type(load("from_all.safetensors")).__name__
""",
    )
    assert answer["names"] == []
    assert answer["other"] == []
    assert sorted(answer["beside"]) == ["blocks.2.ffn.0.bias", "blocks.2.ffn.0.weight"]
    assert answer["dtype"] in ("BF16", "F32")
    assert 0 < answer["moved"] < 1
    assert answer["loads"] == "ModelPatcher"


def test_merged_models_and_parts_of_tensors(folder):
    """ModelMergeSimple, patches of rows with a function, and what no merge can take."""
    answer = asked(
        folder,
        """
name, key = "blocks.0.ffn.0.set_weight", "diffusion_model.blocks.0.ffn.0.weight"
model, other = load("wan.safetensors"), load("wan.safetensors")
weight = model.model.diffusion_model.blocks[0].ffn[0].weight.detach().clone()
with torch.no_grad():
    for value in other.model.diffusion_model.parameters():
        value.mul_(1.5)
merge = model.clone()
for one, patch in other.get_key_patches("diffusion_model.").items():
    merge.add_patches({one: patch}, 0.75, 0.25)
shown = show_model(merge)
answer["merged"] = len(shown.merged) / len(shown.weights)
answer["far"] = float((shown.merged[name].values() - 1.375 * weight).abs().max())
digests = [shown.metadata["comfyui_patches"]]
rows = model.clone()
ones = torch.ones(64, weight.shape[1])
rows.add_patches({(key, (0, 32, 64), lambda value: 2 * value): ("diff", (ones,))}, 0.5)
change = show_model(rows).merged[name].values() - weight
answer["rows"] = [float(change[a:b].mean()) for a, b in ((0, 32), (32, 96), (96, None))]
digests += [show_model(m).metadata.get("comfyui_patches") for m in (rows, rows.clone(), model)]
answer["digests"] = digests
misfit = model.clone()
misfit.add_patches({key: ("diff", (torch.ones(3, 3),))}, 1.0)
shown = show_model(misfit)
shown.merged[name].values(), shown.merged[name].values()
answer["unmerged"] = [*shown.unmerged]
wide = [*weight.shape[:-1], weight.shape[-1] + 8]
padded = model.clone()
padded.add_patches({key: ("diff", (torch.zeros(wide), {"pad_weight": True}))}, 1.0)
shown = show_model(padded)
both = shown.weights["blocks.0.ffn.0.weight"], shown.merged[name]
answer["padded"] = [[*tensor.values().shape] for tensor in both] + [wide]
""",
    )
    assert answer["merged"] == 1
    assert answer["far"] < 1e-6
    assert answer["rows"] == [0, pytest.approx(1, abs=1e-6), 0]
    first, second, again, none = answer["digests"]
    assert first != second == again
    assert none is None
    assert len(answer["unmerged"]) == 1
    assert "SHAPE MISMATCH" in answer["unmerged"][0]
    assert answer["padded"][0] == answer["padded"][1] == answer["padded"][2]


def test_what_is_lost_and_what_no_file_holds_is_told(folder):
    answer = asked(
        folder,
        """
answer["fp8"] = show_model(load("wan.safetensors", dtype=torch.float8_e4m3fn)).lost
answer["half"] = show_model(load("wan.safetensors", dtype=torch.float16)).notes
model = load("wan.safetensors")
sampling = model.clone()
sampling.add_object_patch("model_sampling", object())
answer["object"] = show_model(sampling).notes
injected = model.clone()
injected.set_injections("bypass_lora", [])
answer["injected"] = refused(show_model, injected)
trained = model.clone()
trained.add_weight_wrapper("diffusion_model.blocks.0.ffn.0.weight", abs)
answer["trained"] = refused(show_model, trained)
class GGMLTensor(torch.Tensor):
    pass
codes = torch.ones(4, 4).as_subclass(GGMLTensor)
model.model.diffusion_model.blocks[0].ffn[0].weight = torch.nn.Parameter(codes, requires_grad=False)
answer["foreign"] = refused(show_model, model)
""",
    )
    assert "were loaded as F8_E4M3" in answer["fp8"]
    assert "set weight_dtype of the loader to default" in answer["fp8"]
    assert ["were loaded as F16" in note for note in answer["half"]] == [True]
    assert answer["object"] == [
        "not of a file, and to be set behind its loader again: model_sampling"
    ]
    assert "bypass_lora beside its layers" in answer["injected"]
    assert "is being trained" in answer["trained"]
    assert "weights are GGMLTensor" in answer["foreign"]
    for line in (answer["injected"], answer["trained"], answer["foreign"]):
        assert "\n" not in line
