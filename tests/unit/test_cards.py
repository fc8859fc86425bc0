"""Cards: rows are whole, and say of each class what ComfyUI's own kernels ask for."""

import pytest

from nvfp4.cards import CARDS, KITCHEN_FORMATS, UNITS, card_called
from nvfp4.cli.parse import parse_options

# The least compute capability that comfy_kitchen's layouts state (MIN_SM_VERSION), by our words.
LAYOUTS = {
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "fp8": "TensorCoreFP8Layout",
    "w4a8": "AsymW4A8Int8Layout",
    "w6a8": "AsymW4A8Int8Layout",
    "int8": "TensorWiseINT8Layout",
}
# The lowest capability of each class of NVIDIA's cards.
CAPABILITIES = {"blackwell": (10, 0), "ada": (8, 9), "ampere": (8, 0), "turing": (7, 5)}


def test_rows_are_whole():
    assert list(CARDS) == ["blackwell", "ada", "ampere", "turing", "rdna"]
    for card in CARDS.values():
        assert {UNITS[word] for word in card.fast} == card.rates.keys()
        assert card.fast[-1] == "16bit"
        assert all(card.rate(word) > 0 for word in UNITS)
        assert all((card.title, card.why, card.model, card.source, card.needs))
        assert card.url.startswith("https://")
    assert set(KITCHEN_FORMATS) < UNITS.keys()


def test_what_is_not_fast_runs_at_16_bit_speed():
    ada = CARDS["ada"]
    assert ada.rate("nvfp4") == ada.rate("mxfp8") == ada.rate("16bit") == 165.2
    assert ada.rate("w4a8") == ada.rate("int8") == 660.6
    assert CARDS["turing"].rate("w4a8") == 56.9


def test_no_sparse_figures_and_floats_with_float32_sums():
    # Of one generation, half the bits are twice the operations: FP8 over 16-bit, FP4 over INT8.
    # GeForce cards multiply INT8 four times as fast as 16-bit floats that are summed in float32.
    for name in ("blackwell", "ada", "ampere", "turing"):
        rates = CARDS[name].rates
        assert rates["INT8"] / rates["16-bit"] == pytest.approx(4, rel=0.001)
        assert rates.get("FP8", 2 * rates["16-bit"]) / rates["16-bit"] == pytest.approx(
            2, rel=0.001
        )
    assert CARDS["blackwell"].rates["FP4"] == 2 * CARDS["blackwell"].rates["INT8"]
    assert CARDS["rdna"].rates["INT8"] == pytest.approx(2048 * 64 * 2.97e-3, abs=0.1)


@pytest.mark.parametrize(("name", "capability"), CAPABILITIES.items())
def test_cards_have_what_comfy_kitchen_asks_for(name, capability):
    layouts = pytest.importorskip("comfy_kitchen.tensor")
    if not all(hasattr(layouts, layout) for layout in LAYOUTS.values()):
        pytest.skip("this comfy-kitchen has not all of the formats")
    least = {word: getattr(layouts, layout).MIN_SM_VERSION for word, layout in LAYOUTS.items()}
    fast = {word for word, needed in least.items() if capability >= needed}
    assert fast == {*CARDS[name].fast} - {"16bit"}


@pytest.mark.parametrize(
    ("name", "word"),
    [("4090", "ada"), ("rtx5090", "blackwell"), ("RTX 50", "blackwell"), ("RTX 3060 Ti", "ampere"),
     ("geforce-rtx-2080-super", "turing"), ("RX 7900 XTX", "rdna"), ("9070xt", "rdna"),
     ("GTX 1080", ""), ("RX 6800", ""), ("RTX 4000", ""), ("A40", ""), ("adda", "")],
)  # fmt: skip
def test_a_card_is_called_by_its_number(name, word):
    assert card_called(name) == (word or name)


def test_a_cards_class_is_told(capsys):
    with pytest.raises(SystemExit):
        parse_options(["a.safetensors", "--card", "rtx 4090"])
    assert capsys.readouterr().err.endswith("; did you mean ada?\n")
