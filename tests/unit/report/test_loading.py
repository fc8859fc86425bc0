"""Where a file goes in ComfyUI, and how it is loaded there."""

import pytest

from nvfp4.report.loading import loading_data, type_text
from support.make_families import read_headers
from support.paths import FAMILIES


@pytest.mark.parametrize(
    ("types", "told"),
    [
        ((), ""),
        (("wan",), ", type wan"),
        (("lumina2", "flux2"), ", type lumina2 or flux2 by the model it is for"),
        (("a", "b", "c"), ", type a, b or c by the model it is for"),
        (("a", "b", "c", "d"), ", type a, b or c by the model it is for"),
    ],
)
def test_types_are_told(types, told):
    assert type_text(types) == told


@pytest.mark.parametrize(
    "path", sorted((FAMILIES / "encoders").glob("*.txt")), ids=lambda x: x.stem
)
def test_every_text_encoder_goes_to_load_clip(path):
    found = loading_data(read_headers(path), sharded=False, known=True)
    assert (found["folder"], found["node"], found["weight_dtype"]) == (
        "text_encoders", "Load CLIP", None,
    )  # fmt: skip
    assert found["text"].startswith("into models/text_encoders; node Load CLIP")


def test_other_files_have_no_type():
    assert loading_data({"blocks.0.x.weight": ()}, sharded=False, known=True)["type"] is None
    sharded = loading_data({"x": ()}, sharded=True, known=True)
    assert {sharded[key] for key in sharded if key != "text"} == {None}
