"""What a real ComfyUI answers about sound and broken files, from their headers alone."""

import json
import math
from pathlib import Path

import pytest

from nvfp4.asking.answers import Answer
from nvfp4.asking.ask import ask
from nvfp4.asking.find import find_comfyui
from nvfp4.asking.question import question_of_job, question_of_model
from nvfp4.guides.read import read_guides
from nvfp4.layout import make_job
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.source.read import read_source
from support.asking import SHAPES, Asked, config
from support.comfyui import COMFYUI, needs_comfyui, run_comfyui, stubbed  # noqa: F401
from support.make_families import read_headers
from support.paths import FAMILIES

pytestmark = [needs_comfyui, pytest.mark.slow]
ENCODER = "text_encoders.umt5xxl.transformer."
MODEL = "model.diffusion_model."
GATE = "double_stream_blocks.3.block.ff_i.gate"
TO_K = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
# Encoders that are loaded alone, and one of those that are loaded beside another.
ENCODERS = {
    "umt5_xxl": "T5_XXL", "qwen3_vl_4b": "QWEN3VL_4B", "gemma2_2b": "GEMMA_2_2B",
    "mistral_small_24b_flux2": "MISTRAL3_24B_PRUNED_FLUX2", "llama3_8b": "LLAMA3_8",
}  # fmt: skip
CLIP, QWEN = "text_model.encoder.layers.0.mlp.fc1", "model.layers.0.mlp.up_proj"
FACE, DIRECTION = "motion_encoder.enc.fc.0", "motion_encoder.dec.direction"


def checkpoint(shapes):
    """An all-in-one file: the model, and a text encoder in scaled FP8, whose marker is missing."""
    file = Asked(shapes["wan"], MODEL)
    encoder = Asked(shapes["encoder"], "text_encoders.")
    for name in [name for name in encoder.tensors if ".SelfAttention." in name]:
        if name.endswith(("q.weight", "k.weight")):
            encoder.scaled_fp8(name.removesuffix(".weight"))
    file.tensors |= encoder.tensors | {"vae.conv1.bias": ["F32", [32], None]}
    return file


def encoder_alone(shapes):
    """A text encoder's own file."""
    names = {name: name.removeprefix("umt5xxl.transformer.") for name in shapes["encoder"]}
    return Asked({names[name]: shape for name, shape in shapes["encoder"].items()})


def joined(file, other):
    """Both in one file."""
    file.tensors |= other.tensors
    return file


def quantised(shapes, prefix=""):
    """Every linear layer of a Wan's blocks as NVFP4, with an input scale."""
    file = Asked(shapes, prefix)
    for name, shape in shapes.items():
        layer = prefix + name.removesuffix(".weight")
        if name.startswith("blocks.") and len(shape) == 2 and name.endswith(".weight"):
            file.nvfp4(layer).tensors[f"{layer}.input_scale"] = ["F32", [], None]
    return file


def changed(file, name, *entry):
    """A file with another entry for a tensor, or without it."""
    file.tensors[name] = [*entry]
    return file if entry else without(file, name)


def without(file, *names):
    for name in names:
        del file.tensors[name]
    return file


def published_encoder(name, packed=False):
    """A published encoder's file; packed: its linear layers NVFP4, its embedding INT8."""
    file = Asked(read_headers(FAMILIES / "encoders" / f"{name}.txt"))
    for tensor in [*file.tensors]:
        layer = tensor.removesuffix(".weight")
        if tensor in ("spiece_model", "tekken_model"):
            file.tensors[tensor][0] = "U8"
        elif packed and layer.endswith(("_proj", "wi_0", "wo")):
            file.nvfp4(layer)
        elif packed and layer.endswith(("embed_tokens", "shared")):
            file.int8(layer)
    return file


def sound(shapes):
    """{name: (a sound file, what it is recognised as)}"""
    published = read_headers(FAMILIES / "wan21_t2v_14b.txt")
    plain = Asked(shapes["wan"])
    for name, entry in plain.tensors.items():
        if ".ffn." in name and name.endswith("weight"):
            entry[0] = "F8_E4M3"
    wan = shapes["wan"]
    return {
        "14B": (quantised({name: [*shape] for name, shape in published.items()}), "WAN21_T2V"),
        "16-bit": (Asked(wan), "WAN21_T2V"),
        "NVFP4": (quantised(wan), "WAN21_T2V"),
        "net.": (quantised(wan, "net."), "WAN21_T2V"),
        "model.": (quantised(wan, "model."), "WAN21_T2V"),
        MODEL: (quantised(wan, MODEL), "WAN21_T2V"),
        "plain FP8": (plain, "WAN21_T2V"),
        "scaled FP8": (Asked(wan).scaled_fp8("blocks.1.ffn.0").mark(), "WAN21_T2V"),
        "INT8": (Asked(wan).int8("blocks.1.ffn.0"), "WAN21_T2V"),
        "s2v": (Asked(shapes["s2v"]).nvfp4("blocks.1.ffn.0"), "WAN22_S2V"),
        # An embedding takes FP8, but not NVFP4.
        "s2v, FP8 table": (Asked(shapes["s2v"]).fp8("trainable_cond_mask"), "WAN22_S2V"),
        "animate": (Asked(shapes["animate"]).nvfp4("blocks.1.ffn.0"), "WAN22_Animate"),
        "hidream": (Asked(shapes["hidream"]).nvfp4(f"{GATE[:-4]}shared_experts.w1"), "HiDream"),
        "sdxl": (Asked(shapes["sdxl"], MODEL).nvfp4(f"{MODEL}{TO_K[:-1]}q"), "SDXL"),
        "checkpoint": (checkpoint(shapes).mark(ENCODER), "WAN21_T2V"),
        "sdxl checkpoint": (joined(Asked(shapes["sdxl"], MODEL), Asked(shapes["clips"])), "SDXL"),
        "encoder alone": (encoder_alone(shapes), "a text encoder (T5_XXL)"),
        **{
            f"{name}{' quantised' if packed else ''}": (
                published_encoder(name, packed=packed),
                f"a text encoder ({kind})",
            )
            for name, kind in ENCODERS.items()
            for packed in (False, True)
        },
        "CLIP-L": (published_encoder("clip_l"), "a text encoder (CLIP_L)"),
        # As LTX-2 has it: the rest of the encoder is another file's.
        "a piece of an encoder": (
            changed(quantised(wan, MODEL), f"{ENCODER}shared.weight", "BF16", [256384, 4096], None),
            "WAN21_T2V",
        ),
    }


def broken(shapes):
    """{name: (a broken file, the troubles that ComfyUI has with it)}; None: no model is seen."""
    wan, layer, animate = shapes["wan"], "blocks.1.ffn.0", shapes["animate"]
    attention = [name for name in checkpoint(shapes).tensors if name.endswith("scale_weight")]
    in_encoder = {("unpacked", name.replace("scale_weight", "weight")) for name in attention}
    smoothed = changed(quantised(wan), f"{layer}.no_such_scale", "BF16", [1024], None)
    table, gate = ("stops", "trainable_cond_mask.weight"), f"{GATE}.weight"
    face, direction = f"{FACE}.weight", f"{DIRECTION}.weight"
    return {
        "s2v, table": (Asked(shapes["s2v"]).nvfp4("trainable_cond_mask"), {table}),
        "animate, FP8": (Asked(animate).fp8(FACE), {("unpacked", face)}),
        "animate, NVFP4": (Asked(animate).nvfp4(FACE), {("stops", face)}),
        "animate, direction": (Asked(animate).fp8(DIRECTION), {("unpacked", direction)}),
        # CLIP and ACE-Step's small language model take nothing, and embeddings no NVFP4.
        "CLIP-L, NVFP4": (published_encoder("clip_l").nvfp4(CLIP), {("stops", f"{CLIP}.weight")}),
        "CLIP-L, FP8": (published_encoder("clip_l").fp8(CLIP), {("unpacked", f"{CLIP}.weight")}),
        "umt5, table": (
            published_encoder("umt5_xxl").nvfp4("shared"), {("stops", "shared.weight")}
        ),
        "ACE-Step": (
            published_encoder("qwen3_06b_ace15").fp8(QWEN), {("unpacked", f"{QWEN}.weight")}
        ),
        "animate, bytes": (
            changed(Asked(animate), face, "U8", [512, 512], None), {("unpacked", face)}
        ),
        "hidream, gate": (Asked(shapes["hidream"]).nvfp4(GATE), {("stops", gate)}),
        "hidream, FP8 gate": (Asked(shapes["hidream"]).fp8(GATE), {("unpacked", gate)}),
        "sdxl, to_k": (Asked(shapes["sdxl"]).nvfp4(TO_K), None),
        "_orig_mod.": (Asked(wan, "_orig_mod."), None),
        "dit.": (Asked(wan, "dit."), None),
        "empty": (Asked({}), None),
        "checkpoint without marker": (checkpoint(shapes), in_encoder),
        "scaled FP8 without marker": (
            Asked(wan).scaled_fp8(layer), {("unpacked", f"{layer}.weight")}
        ),
        "16-bit shape": (
            changed(Asked(wan), f"{layer}.weight", "BF16", [2048, 1000], None),
            {("stops", f"{layer}.weight")},
        ),
        "16-bit shape, no norm": (
            without(
                changed(Asked(wan), f"{layer}.weight", "BF16", [2048, 1000], None),
                "blocks.1.norm3.bias",
            ),
            {("stops", f"{layer}.weight"), ("missing", "blocks.1.norm3.bias")},
        ),
        # Quantised models take any shape when they are loaded.
        "16-bit shape, quantised": (
            changed(Asked(wan).nvfp4(f"{layer[:-1]}2"), f"{layer}.weight", "BF16", [99, 9], None),
            {("shape", f"{layer}.weight")},
        ),
        "packed shape": (
            changed(quantised(wan), f"{layer}.weight", "U8", [2048, 500], None),
            {("shape", f"{layer}.weight")},
        ),
        "no weight": (changed(quantised(wan), f"{layer}.weight"), {("missing", f"{layer}.weight")}),
        "no norm": (
            without(quantised(wan), "blocks.1.norm3.bias"), {("missing", "blocks.1.norm3.bias")}
        ),
        "no scale": (without(quantised(wan), f"{layer}.weight_scale"), {("stops", "")}),
        "unread": (smoothed, {("unread", f"{layer}.no_such_scale")}),
        "stray": (
            changed(Asked(wan), "no.such.weight", "BF16", [9], None),
            {("unexpected", "no.such.weight")},
        ),
        "format": (
            changed(quantised(wan), f"{layer}.comfy_quant", *config(format="no such")),
            {("stops", "")},
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def asked(stubbed):  # noqa: F811
    """Sound files, broken ones, and how ComfyUI took each of them, in one process."""
    shapes, _ = run_comfyui(SHAPES)
    good, bad = sound(shapes), broken(shapes)
    questions = {name: file.question for name, (file, _) in (good | bad).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", stubbed)
        return good, bad, ask(find_comfyui(Path(COMFYUI)), questions)


def test_sound_files_are_taken_whole(asked):
    good, _, answers = asked
    found = {name: (answers[name].recognised, answers[name].troubles) for name in good}
    assert found == {name: (recognised, ()) for name, (_, recognised) in good.items()}
    # Its VAE is not asked.
    assert answers["checkpoint"].left == 1
    alone = Answer(comfyui=find_comfyui(Path(COMFYUI)), file=answers["umt5_xxl"])
    assert (alone.findings, alone.sentence.partition("recognises ")[2]) == (
        (), "a text encoder (T5_XXL), and takes all 243 tensors"
    )  # fmt: skip


def test_broken_files_are_told_by_what_is_wrong(asked):
    _, bad, answers = asked
    for name, (_, expected) in bad.items():
        taken = answers[name]
        found = {trouble[:2] for trouble in taken.troubles} if taken.recognised else None
        assert found == expected, name
        assert not taken.unsure
        if expected != {("unexpected", "no.such.weight")}:
            assert Answer(comfyui=find_comfyui(Path(COMFYUI)), file=taken).problems


def test_the_shape_that_comfyui_has_is_told(asked):
    details = {t.name: t.detail for t in asked[2]["s2v, table"].troubles}
    told = "uint8 [16, 512], ComfyUI's is [3, 1024]"
    assert details["trainable_cond_mask.weight"] == told
    (trouble,) = asked[2]["animate, FP8"].troubles
    assert trouble.detail == "float8_e4m3fn [512, 512] in EqualLinear"


def test_another_model_than_the_source_is_told(asked):
    answers = asked[2]
    comfyui = find_comfyui(Path(COMFYUI))
    same = Answer(comfyui=comfyui, file=answers["NVFP4"], source=answers["16-bit"])
    assert (same.problems, same.changed) == ([], "")
    other = Answer(comfyui=comfyui, file=answers["14B"], source=answers["16-bit"])
    assert "dim 1024 -> 5120" in other.changed
    assert "num_layers 5 -> 40" in other.problems[0]


def test_the_plan_of_every_published_model_is_taken(stubbed, tmp_path, monkeypatch):  # noqa: F811
    """At full size: sources of zeros, whose files have holes instead of data."""
    monkeypatch.setenv("PYTHONPATH", stubbed)
    questions = {}
    for path in sorted(FAMILIES.glob("*.txt")):
        source = hollow_file(tmp_path / f"{path.stem}.safetensors", read_headers(path))
        options = Options(source=source, output=tmp_path / "o.safetensors", preset="auto")
        model = read_source(options).model
        plans = make_plans(options, model, read_guides(options, model)).plans
        job = make_job(options, model, plans)
        questions[path.stem, "file"] = question_of_job(job)
        questions[path.stem, "source"] = question_of_model(model, is_source=True)
    comfyui = find_comfyui(Path(COMFYUI))
    taken = ask(comfyui, {" ".join(key): question for key, question in questions.items()})
    for name in {name for name, _ in questions}:
        answer = Answer(comfyui=comfyui, file=taken[f"{name} file"], source=taken[f"{name} source"])
        assert (answer.findings, answer.notes, answer.changed) == ((), (), ""), name
        assert answer.sentence.endswith(f"takes all {answer.file.tensors:,} tensors")


def hollow_file(path, shapes):
    """A safetensors file of BF16 zeros, of any size, that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path
