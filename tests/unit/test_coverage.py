"""A guide covers the source, or says that it does not."""

from pathlib import Path

import pytest

from nvfp4.coverage import Cover, check_blocks, check_cover
from nvfp4.errors import ConvertError
from support.files import model_with

LAYERS = {f"blocks.{block}.{layer}": 1000 for block in range(10) for layer in ("q", "ffn.0")}
WANTED = LAYERS | {"head": 1000}


def cover(*lacking):
    return Cover((Path("g.gguf"),), frozenset(WANTED.keys() - set(lacking)))


def test_a_tenth_may_lack_and_more_is_refused():
    assert check_cover(cover("blocks.0.q", "head"), WANTED, False) == []
    with pytest.raises(ConvertError) as caught:
        check_cover(cover("blocks.0.q", "blocks.1.q", "head"), WANTED, False)
    assert str(caught.value) == (
        "g.gguf: is of another model, or only a part: 14 % of the linear weights' bytes have no "
        "counterpart in it; it has blocks.0.ffn.0, blocks.1.ffn.0, blocks.2.ffn.0 and 15 more; the "
        "source has blocks.0.q, blocks.1.q, head; take the file of this model, or go on with "
        "--partial-guide"
    )


def test_a_whole_block_that_lacks_is_refused_however_small():
    wanted = WANTED | {"blocks.3.q": 1, "blocks.3.ffn.0": 1}
    lacking = cover("blocks.3.q", "blocks.3.ffn.0")
    with pytest.raises(ConvertError, match=r"nothing for whole blocks: blocks\.3; it has"):
        check_cover(lacking, wanted, False)
    assert check_cover(lacking, wanted, True) == [
        "--partial-guide: 100 % of the linear weights' bytes follow g.gguf"
    ]


def test_a_partial_guide_tells_its_share():
    half = cover(*(layer for layer in WANTED if layer.endswith("ffn.0")))
    note = "--partial-guide: 52 % of the linear weights' bytes follow g.gguf"
    assert check_cover(half, WANTED, True) == [note]
    assert check_cover(cover(), WANTED, True) == []


def test_blocks_that_the_source_lacks_are_refused_or_noted():
    model = model_with([f"model.diffusion_model.{layer}.weight" for layer in WANTED])
    longer = Cover((Path("folder", "s.json"),), frozenset([*WANTED, "blocks.10.q", "blocks.11.q"]))
    assert check_blocks(cover(), model, False) == []
    with pytest.raises(ConvertError, match=r"not in the source: blocks\.10, blocks\.11; it has"):
        check_blocks(longer, model, False)
    (note,) = check_blocks(longer, model, True)
    what = "s.json has whole blocks that the source lacks: blocks.10, blocks.11"
    assert note == f"--partial-guide: {what}"
