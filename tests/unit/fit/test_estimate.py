"""The estimate of a card's memory, held against what ComfyUI itself answered on an H200."""

from math import prod

import pytest

from nvfp4.families import FAMILIES
from nvfp4.fit import Stage, StageKind, memory_told, smaller_size, stage_of
from nvfp4.fit.estimate import (
    CONTEXT,
    DECODING,
    GIB,
    HALF_BYTES,
    LEAST_ACTIVATIONS,
    MIB,
    SAMPLING,
    activations_of,
)
from nvfp4.fit.needs import usual_size
from nvfp4.model import Model, TensorRef
from nvfp4.options import Options
from support.make_families import read_headers
from support.paths import FAMILIES as SHAPES

VIDEO = (832, 480, 81)
# What memory_required of ComfyUI 0.33's model answered there for a batch of one, in MiB.
SAMPLED = [
    ("wan", "I2V", 5120, VIDEO, 6039), ("wan", "I2V", 5120, (1280, 720, 81), 13936),
    ("wan", "I2V", 5120, (640, 384, 49), 2301), ("wan", "TI2V", 3072, (1280, 704, 121), 3017),
    ("qwen-image", "", 3072, (1328, 1328, 1), 992), ("flux", "dev", 3072, (1024, 1024, 1), 1016),
    ("flux2", "", 6144, (1024, 1024, 1), 2397), ("flux2", "", 4096, (1024, 1024, 1), 1598),
    ("z-image", "", 3840, (1024, 1024, 1), 918), ("chroma", "", 3072, (1024, 1024, 1), 1049),
    ("hunyuan-video", "", 3072, (848, 480, 25), 1603), ("ltx2", "", 2048, (768, 512, 97), 1647),
    ("cosmos-predict2", "", 2048, (848, 480, 93), 2900),
]  # fmt: skip
# What memory_used_decode of its VAE answered in bfloat16, in MiB.
DECODED = [
    ("Wan 2.1 and Qwen-Image", VIDEO, 5332), ("Wan 2.1 and Qwen-Image", (1280, 720, 81), 12305),
    ("Wan 2.1 and Qwen-Image", (1024, 1024, 1), 4400), ("Wan 2.2 TI2V", (1280, 704, 121), 13750),
    ("Flux", (1024, 1024, 1), 4356), ("Flux 2", (1024, 1024, 1), 4356),
]  # fmt: skip


def stage(card=16 * GIB, activations=6 * GIB, size=VIDEO):
    return Stage(kind=StageKind.SAMPLES, card=card, activations=activations, size=size)


@pytest.mark.parametrize(("family", "variant", "width", "size", "answered"), SAMPLED)
def test_activations_are_what_comfyui_estimates(family, variant, width, size, answered):
    row = next(row for row in SAMPLING if row[:3] == (family, variant, width))
    assert round(activations_of(row, width, size) / MIB) == answered


@pytest.mark.parametrize(("title", "size", "answered"), DECODED)
def test_decoding_needs_what_comfyui_estimates(title, size, answered):
    (row,) = (row for row in DECODING if row.title == title)
    assert round(row.needs(size, HALF_BYTES) / MIB) == answered
    assert row.needs(size, 4) == 2 * row.needs(size, HALF_BYTES)


def test_small_pictures_need_what_comfyui_keeps_free_at_least():
    row = next(row for row in SAMPLING if row.family == "qwen-image")
    assert activations_of(row, 3072, (512, 512, 1)) == LEAST_ACTIVATIONS


def test_another_width_counts_in_proportion():
    row = next(row for row in SAMPLING if row[:3] == ("wan", "T2V", 5120))
    half = activations_of(row, 2560, (1280, 720, 81))
    assert half == pytest.approx(activations_of(row, 5120, (1280, 720, 81)) / 2, rel=1e-6)


def test_every_row_is_of_a_family_of_pictures_or_videos():
    for row in SAMPLING:
        assert {"image", "video"} & {*FAMILIES[row.family].makes}
        assert min(row.factor, row.width, row.space, row.time) > 0


@pytest.mark.parametrize(("name", "needs"), [("umt5_xxl", 0.8 * GIB), ("gemma3_12b", 1926 * MIB)])
def test_encoders_need_what_comfyui_keeps_free_or_estimates(tmp_path, name, needs):
    refs = {
        tensor: TensorRef(
            name=tensor, dtype="BF16", shape=shape, path=tmp_path, begin=0, nbytes=2 * prod(shape)
        )
        for tensor, shape in read_headers(SHAPES / "encoders" / f"{name}.txt").items()
    }
    options = Options(source=tmp_path / "m.safetensors", output=tmp_path / "o.safetensors", fit=GIB)
    found = stage_of(options, Model(tensors=refs, metadata={}, files=()))
    assert (found.kind, found.size, found.activations) == (StageKind.ENCODES, None, round(needs))


def test_the_reserve_is_larger_on_larger_cards():
    assert stage(16 * GIB).reserve == 700 * MIB + CONTEXT
    assert stage(12 * GIB).reserve == 600 * MIB + CONTEXT
    assert stage().budget == 10 * GIB - stage().reserve
    assert "10.0" not in memory_told(stage(), stage().budget)
    assert "0 bytes left" in memory_told(stage(), stage().budget)


def test_fewer_frames_are_named_before_smaller_pictures():
    room = stage().budget
    assert smaller_size(stage(), room + 2 * GIB) == "832x480x49"
    assert smaller_size(stage(), room + 5 * GIB) == "320x192x81"
    assert smaller_size(stage(), room + 6 * GIB) == ""


@pytest.mark.parametrize("row", SAMPLING, ids=lambda row: f"{row.family}-{row.variant}")
def test_videos_are_counted_with_the_frames_that_they_usually_have(row):
    width, height, frames = usual_size(row.family, row.variant)
    assert min(width, height) >= 480
    # Classes of ComfyUI for images, whose latents have a place for frames all the same.
    images = {name for name, family in FAMILIES.items() if "video" not in family.makes}
    assert (frames > 1) == ((row.is_video and row.family not in images) or row.family == "svd")
